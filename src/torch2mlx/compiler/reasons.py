"""Why torch.export stops, in one line each: the line of the user's code, and what torch says."""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["drafted_reasons", "reason_of"]

_PACKAGE = str(Path(__file__).parents[1])
_STANDARD_LIBRARY = sysconfig.get_path("stdlib")


def drafted_reasons(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> list[str]:
    """What torch's draft export finds beside the first reason; nothing where it fails as well."""
    from torch.export import draft_export

    try:
        program = draft_export(module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
        failures = program._report.failures  # type: ignore[attr-defined]
    except Exception:
        # The export's own error says the first reason; draft export adds to it where it can.
        return []
    reasons = []
    for failure in failures:
        data: dict[str, Any] = failure.data
        place = _user_frame(data.get("stack") or data.get("user_stack") or [])
        what = failure.failure_type.name.lower().replace("_", " ")
        detail = data.get("expr") or data.get("op") or data.get("reason") or ""
        reasons.append(f"{place}: {what} {detail}".rstrip())
    return reasons


def reason_of(error: BaseException) -> str:
    """One line: the user's file and line, and what torch says."""
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if not f.filename.startswith(_PACKAGE) and not _is_foreign(f.filename)
    ]
    text = str(error)
    user = re.findall(r'File "([^"]+)", line (\d+), in', text)
    named = [(n, line) for n, line in user if not (n.startswith(_PACKAGE) or _is_foreign(n))]
    # The first non-empty line is torch's sentence; the rest are logs and suggestions.
    message = next((line.strip() for line in text.splitlines() if line.strip()), "")
    message = message or type(error).__name__
    unknown = re.match(r"Found <class '([^']+)'> in (\w+), which is not a known type", message)
    if unknown:
        message = (
            f"{unknown[2]}: torch.export does not know what {unknown[1]} holds; for a "
            "dataclass call torch.export.register_dataclass first, or use tuples and dicts"
        )
    if named:
        name, line = named[-1]
        return f"{name}:{line}: {message}"
    if frames:
        frame = frames[-1]
        code = f" ({frame.line})" if frame.line else ""
        return f"{frame.filename}:{frame.lineno}{code}: {message}"
    return message


def _user_frame(stack: Any) -> str:
    """`file:line` of the innermost frame outside torch in a stack of dicts or strings."""
    for frame in reversed(list(stack)):
        if isinstance(frame, Mapping):
            name = str(frame.get("filename") or "")
            if name.isdigit() or not name:
                name = str(frame.get("name") or "")
            if name and not _is_foreign(name):
                return f"{name}:{frame.get('line')}"
    return "forward"


def _is_foreign(filename: str) -> bool:
    """Whether a frame is torch's or the standard library's, which says nothing of the module."""
    import torch

    if filename.startswith((str(Path(torch.__file__).parent), "<")):
        return True
    return filename.startswith(_STANDARD_LIBRARY) and "site-packages" not in filename
