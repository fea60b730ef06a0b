"""The drawing board: shapes, texts and scales of an SVG picture.

Colours are classes, which the page's style sheet gives values for light, dark and print.  A
picture is 440 units wide: on a desktop two stand side by side, on a phone one fills the width,
and its texts stay about as large as the page's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, floor, isfinite, log10

from markupsafe import Markup

__all__ = ["WIDTH", "Canvas", "Picture", "Scale"]

WIDTH = 440


@dataclass(frozen=True)
class Picture:
    """A figure of a report.

    Attributes:
        name: unique on its page; letters and hyphens.
        title: above it.
        caption: what it shows and how to read it.
        svg: the drawing.
        header, rows: the same as a table.
    """

    name: str
    title: str
    caption: str
    svg: Markup
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Scale:
    """From values to places on the board.

    Attributes:
        low, high: values at the ends; above 0 where `log` is set.
        start, stop: places of the ends.
        log: equal ratios are equally far apart.
    """

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value; beyond the ends it stays at the end."""
        low, high, value = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, value = log10(low), log10(high), log10(value)
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.stop - self.start)

    def ticks(self, most: int = 5) -> list[float]:
        """Round values between the ends."""
        if self.log:
            first, last = ceil(log10(self.low) - 1e-9), floor(log10(self.high) + 1e-9)
            step = max(1, ceil((last - first + 1) / most))
            return [10.0**power for power in range(first, last + 1, step)]
        span = self.high - self.low
        if span <= 0 or not isfinite(span):
            return [self.low]
        power = 10.0 ** floor(log10(span / most))
        size = next(s * power for s in (1, 2, 5, 10) if span / (s * power) <= most)
        first = ceil(self.low / size - 1e-9)
        return [i * size for i in range(first, floor(self.high / size + 1e-9) + 1)]


@dataclass
class Canvas:
    """A board of `WIDTH` by `height` units; shapes lie over those drawn before."""

    height: float
    parts: list[Markup] = field(default_factory=list)

    def rect(
        self, x: float, y: float, width: float, height: float, kind: str, tip: str = ""
    ) -> None:
        """A rectangle with a text that appears under the pointer."""
        self._add(
            Markup('<rect x="{}" y="{}" width="{}" height="{}" class="{}"'),
            (_n(x), _n(y), _n(max(width, 0)), _n(max(height, 0)), kind), "rect", tip,
        )  # fmt: skip

    def circle(self, x: float, y: float, radius: float, kind: str, tip: str = "") -> None:
        """A disc."""
        values = (_n(x), _n(y), _n(radius), kind)
        self._add(Markup('<circle cx="{}" cy="{}" r="{}" class="{}"'), values, "circle", tip)

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """A straight line."""
        values = (_n(x1), _n(y1), _n(x2), _n(y2), kind)
        self._add(Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"'), values, "line", "")

    def path(self, points: Sequence[tuple[float, float]], kind: str, close: bool = False) -> None:
        """A line through points, or the area inside of it."""
        text = "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points) + ("Z" if close else "")
        self._add(Markup('<path d="{}" class="{}"'), (text, kind), "path", "")

    def text(
        self, x: float, y: float, text: str, kind: str = "", anchor: str = "start", turn: int = 0
    ) -> None:
        """A text whose base line begins, is centred or ends at a place."""
        turned = Markup(' transform="rotate({} {} {})"').format(turn, _n(x), _n(y)) if turn else ""
        self.parts.append(
            Markup('<text x="{}" y="{}" class="{}" text-anchor="{}"{}>{}</text>').format(
                _n(x), _n(y), kind, anchor, turned, text
            )
        )

    def render(self, name: str, title: str, description: str) -> Markup:
        """The whole drawing.

        Args:
            name: begins its ids.
            title: said by screen readers.
            description: said after it: the finding, in a sentence or two.
        """
        return Markup(
            '<svg viewBox="0 0 {} {}" role="img" aria-labelledby="{}-t {}-d">'
            '<title id="{}-t">{}</title><desc id="{}-d">{}</desc>{}</svg>'
        ).format(
            WIDTH, _n(self.height), name, name, name, title, name, description,
            Markup("").join(self.parts),
        )  # fmt: skip

    def _add(self, start: Markup, values: tuple[str, ...], tag: str, tip: str) -> None:
        opened = start.format(*values)
        if tip:
            self.parts.append(opened + Markup("><title>{}</title></{}>").format(tip, Markup(tag)))
        else:
            self.parts.append(opened + Markup("/>"))


def _n(value: float) -> str:
    """A coordinate in short."""
    return f"{value:.1f}".removesuffix(".0")
