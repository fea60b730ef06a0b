"""Files and folders that are compiled or converted for another library, and who answers for them.

`inspect`, `plan`, `convert` and `verify` ask the same row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from torch2mlx.errors import SourceError

if TYPE_CHECKING:
    from torch2mlx.compiler.example import Example
    from torch2mlx.compiler.result import Compiled
    from torch2mlx.compiler.verification import ProgramVerification
    from torch2mlx.options import ConvertOptions
    from torch2mlx.planning.plan import Plan
    from torch2mlx.progress import Progress
    from torch2mlx.sources.base import Checkpoint

__all__ = ["Asked", "Convert", "Format", "Plans", "Verify"]


@dataclass(frozen=True)
class Asked:
    """What `convert` is asked for, beside the source."""

    destination: str | Path
    options: ConvertOptions
    example: Example
    progress: Progress


_Answer = TypeVar("_Answer")
Convert = Callable[[Path, Asked], "Compiled"]
Plans = Callable[[Path, Mapping[str, "ConvertOptions"]], "dict[str, list[Plan]]"]
Verify = Callable[[Path, Path, "ConvertOptions", "Progress"], "ProgramVerification"]


@dataclass(frozen=True)
class Format:
    """A kind of file or folder.

    Attributes:
        name: for people.
        knows: whether a path is one, told by names and headers alone, without torch.
        convert: makes the folder.
        headers: its tensors and config, of which nothing is read; None: only running code tells.
        plans: options by name → plans of all models under these options; a name for which some
            model has no plan is left out.  None: as for `headers`.
        verify: holds an MLX folder against it; None: it takes an example, which is not kept.
    """

    name: str
    knows: Callable[[Path], bool]
    convert: Convert
    headers: Callable[[Path], Checkpoint] | None = None
    plans: Plans | None = None
    verify: Verify | None = None

    def answer(self, found: _Answer | None, source: object) -> _Answer:
        """One of the attributes, where there is one.

        Raises:
            SourceError: there is none.
        """
        if found is None:
            raise SourceError(
                f"{source}: {self.name}: only its code, run with an example, tells what it is; "
                "that is for convert and bench, and `verify DST --certificate` checks what became "
                "of it"
            )
        return found
