"""What a report says, in every form, and that nothing in a folder can act through it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import torch2mlx
from torch2mlx.errors import OptionError, SourceError

Folder = Callable[..., Path]

VOID = {"meta", "link", "br", "img", "input", "hr"}
LOADING = {"src", "srcset", "href", "xlink:href", "data", "poster", "action", "background"}


class Page(HTMLParser):
    """Checks nesting, collects what a browser would load or run."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.events: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in LOADING and not (value or "").startswith(("#", "data:,")):
                self.loads.append(f"{tag} {name}={value}")
            if name.startswith("on"):
                self.events.append(name)
            if name == "id":
                self.ids.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def _checked(text: str) -> Page:
    """What holds for every page, whatever it shows."""
    page = Page(text)
    assert page.loads == page.events == []
    assert not {"script", "iframe", "object", "embed", "form", "base", "audio", "video"} & set(
        page.tags
    )
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("h1") == 1
    assert "default-src 'none'" in text
    assert not re.search(r"@import|url\(", text)
    assert len(text.encode()) < 3_000_000
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        root = ElementTree.fromstring(svg)  # well-formed
        if root.get("role") == "img":  # has a name, a text and a table
            named = (root.get("aria-labelledby") or "").split()
            assert len(named) == 2
            assert set(named) <= set(page.ids)
            assert all(e.text for e in (root.find("title"), root.find("desc")) if e is not None)
    assert page.tags.count("details") == page.tags.count("figure")
    return page


def test_everything_is_on_the_page(make_folder: Folder, bench_file: Path) -> None:
    report = torch2mlx.report(make_folder(), benchmark=bench_file)
    page = _checked(report.html())
    assert page.text.index("Equal to PyTorch") < page.text.index("Compared with PyTorch")
    for words in (
        "relative L2 difference 2.0 × 10⁻⁶, limit 10⁻⁴",
        "mean KL divergence 0.04 nats",
        "Difference from PyTorch, layer by layer",
        "Quantization error, layer by layer",
        "Bits by module",
        "Divergence of predictions",
        "The sky is because of light",
        "Memory during the conversion",
        "Generating",
        "41 tokens/s",
        "not measured: stopped after a minute",
        "mlx_lm.generate --model",
        "LM Studio",
        "mlx-swift",
        "verify path/to/this/folder --certificate",
        "13 further tensors hold the source's bits",
        report.folders[0].certificate.digest,
    ):
        assert words in page.text, words


def test_the_heatmap_has_a_cell_for_each_module(make_folder: Folder) -> None:
    text = torch2mlx.report(make_folder()).html()
    drawing = re.search(r'<figure id="figure-heatmap">.*?</svg>', text, re.DOTALL)
    assert drawing is not None
    cells = re.findall(r'class="h(\d)"><title>([^<]*)</title>', drawing[0])
    assert len(cells) == 6 * 4
    shades = {name: int(shade) for shade, name in cells}
    assert shades["model.layers.0.self_attn.q_proj: 0.05"] == 0
    assert shades["model.layers.5.mlp.down_proj: 0.1"] == 7


def test_a_layer_lies_where_its_difference_is(make_folder: Folder) -> None:
    """Marks of the parity plot against the logarithm of the differences."""
    from math import log10

    from torch2mlx.reporting.charts import Series, draw_parity

    picture = draw_parity([Series("all layers", ((0, 1e-6), (1, 1e-5), (2, 1e-4)), 1e-5, 1e-4)])
    assert picture is not None
    marks = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"[^>]*><title>([^<]*)<', picture.svg)
    heights = [float(y) for _, y, tip in marks if "layer" in tip.partition(", ")[2]]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)
    assert heights[0] > heights[2]
    assert log10(1e-4) - log10(1e-6) == pytest.approx(2)
    broken = draw_parity([Series("all layers", ((0, None),), None, 1e-4)])
    assert broken is not None
    assert "not finite" in broken.rows[0][2]


def test_modules_show_entry_points_and_outputs(make_folder: Folder) -> None:
    report = torch2mlx.report(make_folder(compiled=True))
    page = _checked(report.html())
    for words in ("Net", "Outputs compared", "example: output 0", "3.0 × 10⁻⁷ of 10⁻⁴",
                  "outputs = model(x)", "--trust-remote-code"):  # fmt: skip
        assert words in page.text, words
    assert "mlx_lm" not in page.text
    assert "| example | output 0 | 1 × 3 | 3.0 × 10⁻⁷ | 10⁻⁴ |" in report.markdown()


def test_unproven_and_failed_folders_say_so_first(make_folder: Folder) -> None:
    unproven = torch2mlx.report(make_folder("a", proven=False))
    page = _checked(unproven.html())
    assert "Not compared with PyTorch" in page.text
    assert "Equal to PyTorch" not in page.text
    assert unproven.to_dict()["mean_kl"] is None
    failed = make_folder("b")
    manifest = failed / "torch2mlx.json"
    raw = json.loads(manifest.read_text())
    raw["verification"]["passed"] = False
    manifest.write_text(json.dumps(raw))
    assert torch2mlx.report(failed).folders[0].verdict.tone == "bad"


HOSTILE = '</title><script>alert(1)</script><img src="http://x.example/a.png" onerror=alert(2)>'


def test_hostile_texts_stay_texts(make_folder: Folder) -> None:
    folder = make_folder(location=f"x/{HOSTILE}", text=HOSTILE, notes=(HOSTILE, "`a` | b"))
    raw = json.loads((folder / "torch2mlx.json").read_text())
    raw["versions"][HOSTILE] = HOSTILE
    raw["outputs"]['a"b<i>.bin'] = {"size": 1, "sha256": None}
    raw["verification"]["comparisons"][1]["part"] = HOSTILE
    raw["verification"]["comparisons"][1]["layers"][0]["place"] = "layer 99999999"
    (folder / "torch2mlx.json").write_text(json.dumps(raw))
    evidence = json.loads((folder / "torch2mlx/evidence.json").read_text())
    evidence["modules"][3]["name"] = f"model.layers.3.{HOSTILE}"
    evidence["memory"]["stages"][0]["title"] = HOSTILE
    (folder / "torch2mlx/evidence.json").write_text(json.dumps(evidence))
    report = torch2mlx.report(folder)
    page = _checked(report.html())
    assert "alert(1)" in page.text  # shown, not run
    _checked(torch2mlx.report(folder, make_folder("other")).html())
    outside = re.sub(r"(?m)^    .*$", "", report.markdown())
    assert not re.search(r"(?<!\\)<", outside)


@pytest.mark.parametrize(
    ("file", "edit", "words"),
    [
        ("torch2mlx/evidence.json", {"modules": [{"name": 1}]}, r"modules\[0\].name"),
        ("torch2mlx/evidence.json", {"memory": []}, "'memory' is a list"),
        ("torch2mlx.json", {"verification": {"comparisons": {}}}, "comparisons' is an object"),
        ("torch2mlx/certificate.json", {"location": "elsewhere"}, "edited"),
    ],
)
def test_damage_is_named(make_folder: Folder, file: str, edit: dict[str, Any], words: str) -> None:
    path = make_folder() / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **edit}))
    with pytest.raises(SourceError, match=words):
        torch2mlx.report(path.parent if file == "torch2mlx.json" else path.parent.parent)


def test_large_folders_stay_small_pages(make_folder: Folder) -> None:
    folder = make_folder()
    path = folder / "torch2mlx/evidence.json"
    evidence = json.loads(path.read_text())
    record = evidence["modules"][1]
    evidence["modules"] = [
        {**record, "name": f"model.layers.{i}.mlp.experts.{k}_proj"}
        for i in range(180)
        for k in range(24)
    ]
    path.write_text(json.dumps(evidence))
    text = torch2mlx.report(folder).html()
    _checked(text)
    assert "more are in the JSON report" in text


def test_comparison_finds_the_front(make_folder: Folder) -> None:
    report = torch2mlx.report(
        make_folder("three", size=30_000_000, kl=0.5),
        make_folder("four", size=40_000_000, kl=0.1),
        make_folder("worse", size=42_000_000, kl=0.2),
        make_folder("full", size=140_000_000, kl=None),
        make_folder("unproven", proven=False),
    )
    page = _checked(report.html())
    assert "Not every conversion was compared" in page.text
    assert "smaller and closer to the original than: three, four, full." in page.text
    assert "1 of them have no measured divergence" in page.text
    assert [f["mean_kl"] for f in report.to_dict()["folders"]] == [0.5, 0.1, 0.2, 0.0, None]


def test_command_line(make_folder: Folder, run_cli: Callable[..., Any], bench_file: Path) -> None:
    folder = make_folder()
    done = run_cli("report", folder)
    assert (done.code, done.out) == (0, "")
    _checked((folder / "report.html").read_text())
    done = run_cli("report", folder, "--json", "--bench", bench_file)
    assert json.loads(done.out)["benchmark"]["rows"][0]["decode_tps"]["median"] == 41.0
    done = run_cli("report", folder, "--markdown", "--out", folder.parent / "x.md")
    card = (folder.parent / "x.md").read_text()
    assert card.startswith("# llama\n\n**Equal to PyTorch before rounding.**")
    assert run_cli("report", folder, "--markdown", "--json").code == 2
    assert run_cli("report", folder, "--out", folder / "no/x.html").code == 7
    assert run_cli("report", folder, "--bench", folder / "config.json").code == 3
    assert run_cli("report", folder.parent).code == 3


def test_a_benchmark_belongs_to_one_folder(make_folder: Folder, bench_file: Path) -> None:
    with pytest.raises(OptionError, match="--bench"):
        torch2mlx.report(make_folder("a"), make_folder("b"), benchmark=bench_file)
    with pytest.raises(OptionError, match="at least one folder"):
        torch2mlx.report()
