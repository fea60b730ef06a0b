"""The pages in a real browser: nothing is fetched, nothing complains, nothing is cut off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chromium import Browser, find_chromium, open_browser

import torch2mlx

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here; Debian has it as `apt-get install chromium`"
)

# Shapes whose texts stand out of their picture, and elements wider than the window.
CUT_OFF = """
[...document.querySelectorAll("figure svg")].flatMap(svg => {
  const frame = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text, rect, circle")].filter(e => {
    const box = e.getBoundingClientRect();
    return box.left < frame.left - 14 || box.right > frame.right + 14 ||
      box.top < frame.top - 2 || box.bottom > frame.bottom + 6;
  }).map(e => svg.querySelector("title").textContent + ": " + e.textContent);
})
"""
SMALLEST_TEXT = """
Math.min(...[...document.querySelectorAll("figure svg text")].map(
  e => e.getBoundingClientRect().height * Number(!e.hasAttribute("transform")) || 99))
"""
CONTRAST = """
(() => {
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(v => (v / 255) ** 2.2);
                       return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = e => { for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)|transparent/.test(c)) return c; } return "rgb(255, 255, 255)"; };
  return Math.min(...[...document.querySelectorAll("h1, h2, p, dt, dd, td, th, figcaption, a")]
    .filter(e => e.textContent.trim() && !e.closest(".verdict, .skip") && e.className != "skip")
    .map(e => { const [a, b] = [light(getComputedStyle(e).color), light(ground(e))];
                return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); }));
})()
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM is not None
    with open_browser(CHROMIUM) as found:
        yield found


@pytest.fixture
def pages(make_folder: Callable[..., Path], bench_file: Path, tmp_path: Path) -> list[Path]:
    reports = {
        "one": torch2mlx.report(make_folder(), benchmark=bench_file),
        "module": torch2mlx.report(make_folder("net", compiled=True)),
        "several": torch2mlx.report(
            make_folder("three-bits", size=30_000_000, kl=0.5),
            make_folder("four-bits-with-a-rather-long-name", size=40_000_000, kl=0.1),
            make_folder("full", size=140_000_000, kl=None),
        ),
    }
    return [r.write(tmp_path / f"{name}.html", r.html()) for name, r in reports.items()]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1180, 390])
def test_pages_are_quiet_and_whole(
    browser: Browser, pages: list[Path], width: int, dark: bool
) -> None:
    for page in pages:
        browser.open(page, width, dark=dark)
        asked = [e["request"]["url"] for e in browser.named("Network.requestWillBeSent")]
        assert asked == [page.as_uri()]
        assert browser.named("Log.entryAdded") == []
        assert browser.named("Runtime.exceptionThrown") == []
        assert browser.named("Runtime.consoleAPICalled") == []
        # Nothing is wider than the window, so nothing has to be scrolled sideways.
        assert browser.value("document.documentElement.scrollWidth") == width
        assert browser.value(CUT_OFF) == []
        assert browser.value(SMALLEST_TEXT) >= 10
        assert browser.value(CONTRAST) >= 4.5
        ground = browser.value("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(17, 20, 27)") is dark


def test_pages_print(browser: Browser, pages: list[Path]) -> None:
    browser.open(pages[0], 1180, dark=True)
    assert browser.printed().startswith(b"%PDF")
    media = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.call("Emulation.setEmulatedMedia", media="print", features=media)
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    browser.call("Emulation.setEmulatedMedia", media="")
