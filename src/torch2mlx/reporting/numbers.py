"""Numbers as a report prints them."""

from __future__ import annotations

from math import floor, isfinite, log10

__all__ = ["cut", "decimal", "percent", "scientific"]

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_LONGEST = 300  # characters of a text from a file


def scientific(value: float | None, digits: int = 2) -> str:
    """1.64e-06 → "1.6 × 10⁻⁶"; None: "not finite"."""
    if value is None or not isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    exponent = floor(log10(abs(value)))
    mantissa = f"{value / 10**exponent:.{digits - 1}f}"
    if mantissa.startswith("10"):
        mantissa, exponent = f"{1:.{digits - 1}f}", exponent + 1
    power = f"10{str(exponent).translate(_SUPERSCRIPT)}"
    return power if float(mantissa) == 1 and digits <= 2 else f"{mantissa} × {power}"


def decimal(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, without an exponent where it is readable."""
    if value is None or not isfinite(value):
        return "not finite"
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        return scientific(value)
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def percent(share: float | None) -> str:
    """0.5846 → "58.5 %"."""
    return "not finite" if share is None or not isfinite(share) else f"{100 * share:.3g} %"


def cut(text: str, longest: int = _LONGEST) -> str:
    """A text from a file in one line and of limited length."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"
