"""A report of one folder or of several, in every form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch2mlx.errors import DestinationError, OptionError
from torch2mlx.reporting.facts import Facts, read_facts
from torch2mlx.reporting.markdown import build_markdown
from torch2mlx.reporting.page import build_comparison, build_page

__all__ = ["Report", "make_report"]


@dataclass(frozen=True)
class Report:
    """What converted folders say of themselves.

    Attributes:
        folders: one, or several to be compared.
    """

    folders: tuple[Facts, ...]

    def html(self) -> str:
        """One self-contained page."""
        single = len(self.folders) == 1
        return _printable(build_page(self.folders[0]) if single else build_comparison(self.folders))

    def markdown(self) -> str:
        """The same in short."""
        return _printable("\n".join(build_markdown(facts) for facts in self.folders))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        if len(self.folders) == 1:
            return self.folders[0].to_dict()
        return {"folders": [facts.to_dict() for facts in self.folders]}

    def write(self, path: str | Path, text: str) -> Path:
        """Write a form of the report to a file, over an older one.

        Raises:
            DestinationError: it cannot be written.
        """
        path = Path(path)
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise DestinationError(
                f"{path}: cannot be written: {error.strerror or error}; choose another --out"
            ) from error
        return path


def _printable(text: str) -> str:
    """Names come from files: half a surrogate cannot be written anywhere."""
    return text.encode("utf-8", "replace").decode("utf-8")


def make_report(folders: Sequence[str | Path], benchmark: str | Path | None = None) -> Report:
    """Read converted folders; no weight is read and no code runs.

    Args:
        folders: what `convert` published.
        benchmark: a file of `torch2mlx bench --json`, for a single folder; None: its own, if any.

    Raises:
        OptionError: no folder, or a benchmark for several.
        SourceError: torch2mlx did not make a folder, or a file in it is damaged.
    """
    if not folders:
        raise OptionError("report: name at least one folder that torch2mlx converted")
    if benchmark is not None and len(folders) > 1:
        raise OptionError(
            "--bench: belongs to the report of one folder; keep each folder's figures in its "
            "torch2mlx/bench.json"
        )
    return Report(tuple(read_facts(folder, benchmark) for folder in folders))
