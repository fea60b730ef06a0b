"""A folder that was compiled, held against its source: compiled again, and nothing written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2mlx.errors import ParityError, SourceError, UnsupportedError
from torch2mlx.options import ConvertOptions
from torch2mlx.packaging.files import MANIFEST
from torch2mlx.packaging.manifest import read_manifest
from torch2mlx.sources.foreign import foreign_values
from torch2mlx.sources.local_files import read_small

if TYPE_CHECKING:
    from torch2mlx.compiler.prepared import Prepared
    from torch2mlx.planning.plan import Plan
    from torch2mlx.progress import Progress
    from torch2mlx.sources.base import TensorSource

__all__ = [
    "ProgramVerification",
    "check_written",
    "recorded_options",
    "require_same",
    "verify_prepared",
]


@dataclass(frozen=True)
class ProgramVerification:
    """What was equal; what is not is an error.

    Attributes:
        folder: the MLX folder.
        tensors: that were compared with the source.
        cases: inputs on which both computed.
        error: largest relative L2 error there, before quantization.
        limit: that it had to keep.
        drift: relative L2 distance that quantization adds on the example, or None.
        notes: what a user should know.
    """

    folder: Path
    tensors: int
    cases: tuple[str, ...]
    error: float
    limit: float
    drift: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Code, settings, tensors and outputs are those of the source."""
        return self.error <= self.limit

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "folder": str(self.folder), "passed": self.passed}


def recorded_options(folder: Path) -> ConvertOptions:
    """What a folder was made with, as its manifest (of a pipeline: its first model's) says.

    Raises:
        SourceError: no manifest, or a damaged one.
        UnsupportedError: values that follow from data, or from a file that may have changed.
    """
    inner = sorted(p.parent for p in folder.glob(f"*/{MANIFEST}"))
    place = folder if (folder / MANIFEST).exists() or not inner else inner[0]
    found = read_manifest(place).options
    known = {f.name for f in fields(ConvertOptions)}
    given = {k: v for k, v in found.items() if k in known}
    if given.get("calibrate") or str(given.get("recipe") or "").endswith(".toml"):
        raise UnsupportedError(
            f"{folder}: was calibrated, or made with a recipe of one's own, which are not kept: "
            f"torch2mlx verify {folder} --certificate compares it with what was proven then"
        )
    with foreign_values(str(place / MANIFEST), "convert the source again"):
        options = replace(ConvertOptions(**given), weights=None, verify=True)
        options.check()
    return options


def verify_prepared(
    folder: Path, models: Iterable[tuple[str, Prepared]], progress: Progress
) -> ProgramVerification:
    """Hold every model of a folder against what was just compiled, and against PyTorch.

    Code of the folder runs only where it is what is generated here.

    Args:
        folder: the MLX folder.
        models: name of a folder in it, or "", and what belongs there.
        progress: listener.

    Raises:
        SourceError: files are missing or damaged.
        ParityError: a file, a tensor or an output differs.
    """
    tensors, found = 0, []
    for name, prepared in models:
        place = folder / name
        plan = prepared.plan(prepared.options)
        texts = {"model.py": prepared.code(plan), "config.json": prepared.config(plan)}
        require_same(place, {n: t.encode() for n, t in texts.items()}, prepared.extras.files)
        prepared.sides.require_memory(plan)
        with progress.stage(f"Comparing {name or 'the model'} with PyTorch"):
            tensors += check_written(place, plan, prepared.weights.source)
            try:
                proof = prepared.sides.compare(place, plan, seed=0)
            except ParityError as error:
                text = str(error).removesuffix("; nothing was written")
                raise ParityError(f"{place}: {text}") from error
        found.append((name, proof))
    if not found:
        raise SourceError(f"{folder}: its source has no model")
    drifts = [p.quantized.drift for _, p in found if p.quantized and p.quantized.drift is not None]
    cases = [f"{name}: {case}" if name else case for name, p in found for case in p.agreement.cases]
    return ProgramVerification(
        folder,
        tensors,
        tuple(cases),
        max(p.agreement.worst for _, p in found),
        max(p.agreement.limit for _, p in found),
        max(drifts, default=None),
    )


def require_same(folder: Path, made: Mapping[str, bytes], copied: Mapping[str, Path]) -> None:
    """Raise for files that are missing or others; all in one message.

    Args:
        folder: that is checked.
        made: name → what it should hold.
        copied: name → the file of the source that it should equal.

    Raises:
        SourceError: there is no such folder.
        ParityError: a file differs.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder}: no such folder")
    wanted = {**made, **{name: read_small(path) for name, path in copied.items()}}
    wrong = [
        f"{name} is missing" if not (folder / name).is_file() else f"{name} differs"
        for name, text in wanted.items()
        if not (folder / name).is_file() or read_small(folder / name) != text
    ]
    if wrong:
        raise ParityError(
            f"{folder}: {', '.join(wrong)}: not what torch2mlx makes of this source in this "
            "version; convert the source again"
        )


def check_written(folder: Path, plan: Plan, source: TensorSource) -> int:
    """Compare every tensor of the weight files with the source.

    Returns:
        how many there are.

    Raises:
        SourceError: weight files are missing, left over or damaged.
        ParityError: a tensor differs.
    """
    from torch2mlx.verification.audit import audit

    wanted = {shard.file for shard in plan.shards}
    found = {path.name for path in folder.glob("model*.safetensors")}
    if wanted != found:
        missing, more = sorted(wanted - found), sorted(found - wanted)
        text = [f"{', '.join(missing[:8])} missing"] if missing else []
        text += [f"{', '.join(more[:8])} left over"] if more else []
        raise SourceError(f"{folder}: {'; '.join(text)}; convert the source again")
    report = audit(plan.outputs, [folder / name for name in sorted(wanted)], source)
    failure = report.first_failure
    if failure is not None:
        raise ParityError(f"{folder}: {failure.detail}")
    return sum(len(output.specs) for output in plan.outputs)
