"""Adapters (LoRA, DoRA) merged into the checkpoint that they were trained on, while it streams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch2mlx.errors import PlanError, SourceError
from torch2mlx.planning.expressions import Expr
from torch2mlx.sources.adapters.merging import added, merged
from torch2mlx.sources.adapters.mlx_lm import read_mlx_lm
from torch2mlx.sources.adapters.peft import read_peft
from torch2mlx.sources.adapters.reading import CONFIG, WEIGHTS, Changes, Stored, open_tensors
from torch2mlx.sources.base import Checkpoint
from torch2mlx.sources.foreign import foreign_values
from torch2mlx.sources.joined import JoinedSource
from torch2mlx.sources.local_files import is_there, read_json_object

__all__ = ["base_of_adapter", "with_adapter"]

_LISTED = 12


def base_of_adapter(folder: Path, above: tuple[Path, ...] = ()) -> str | None:
    """Where the base of an adapter lies, if a folder is an adapter and nothing else.

    Args:
        folder: to look at.
        above: adapters that name it as their base.

    Raises:
        SourceError: it is one, and its config does not name the base, or an adapter above it.
    """
    if not (folder / CONFIG).is_file() or not any((folder / name).is_file() for name in WEIGHTS):
        return None
    if any(_is_model(path.name) for path in folder.iterdir()):
        return None
    config = read_json_object(folder / CONFIG)
    base = config.get("base_model_name_or_path") or config.get("model")
    if not isinstance(base, str) or not base:
        raise SourceError(
            f"{folder / CONFIG}: does not say which model the adapter belongs to; give the model "
            f"as SRC and --adapter {folder}"
        )
    beside = folder / base
    found = str(beside) if not Path(base).is_absolute() and is_there(beside) else base
    here = folder.resolve()
    if here in above:
        raise SourceError(
            f"{folder / CONFIG}: names {base} as its base, which leads back to this adapter; give "
            f"the model as SRC and --adapter {folder}"
        )
    if is_there(Path(found)) and Path(found).is_dir():
        base_of_adapter(Path(found), (*above, here))
    return found


def _is_model(name: str) -> bool:
    weights = name.endswith((".safetensors", ".bin", ".pth", ".gguf"))
    return weights and not name.startswith(("adapter", "training_args", "optimizer", "00"))


def with_adapter(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """The checkpoint with an adapter merged into its state, in float32.

    Args:
        checkpoint: the base.
        folder: of PEFT or mlx-lm.

    Raises:
        SourceError: it is no adapter, or damaged.
        UnsupportedError: a method that has no merged weight, or is not known.
        PlanError: it was trained on another model; all mismatches in one message.
    """
    config, source, tensors = open_tensors(folder)
    read = read_peft if "peft_type" in config else read_mlx_lm
    with foreign_values(str(folder / CONFIG), "save the adapter again"):
        changes = read(config, tensors, checkpoint.state)
    problems = [*changes.problems, *_unreal(checkpoint, changes, tensors)]
    if problems:
        more = len(problems) - _LISTED
        raise PlanError(
            f"{folder}: the adapter does not fit {checkpoint.location} ({len(problems)} "
            "problems):\n  "
            + "\n  ".join(problems[:_LISTED])
            + (f"\n  ... and {more} more" if more > 0 else "")
            + "\nIt was trained on another model; give the one that its adapter_config.json names."
        )
    if not (changes.low_rank or changes.replaced or changes.added):
        raise SourceError(f"{folder}: the adapter holds no tensors")
    state: dict[str, Expr] = {**checkpoint.state, **changes.replaced}
    for name, low_rank in changes.low_rank.items():
        state[name] = merged(name, state[name], low_rank)
    for name, (extra, scale) in changes.added.items():
        state[name] = added(name, state[name], extra, scale)
    changed = changes.low_rank.keys() | changes.added.keys() | changes.replaced.keys()
    note = f"merged adapter {folder.name}: {len(changes.low_rank)} weights changed in float32" + (
        f", {len(changes.replaced)} tensors replaced" if changes.replaced else ""
    )
    return replace(
        checkpoint,
        config=_with_dtype(checkpoint),
        source=JoinedSource(checkpoint.source, source),
        state=state,
        packed={n: p for n, p in checkpoint.packed.items() if n not in changed},
        notes=(*checkpoint.notes, note),
    )


def _unreal(checkpoint: Checkpoint, changes: Changes, tensors: Stored) -> Iterator[str]:
    """Tensors that are no real numbers: a sum would lose a part of them."""
    changed = changes.low_rank.keys() | changes.added.keys()
    bases = {name: checkpoint.state[name] for name in sorted(changed)}
    for name, expr in {**tensors, **bases}.items():
        if expr.dtype.name == "C64" or (name in tensors and not expr.dtype.floating):
            yield f"{name}: {expr.dtype}, expected real floating-point numbers"


def _with_dtype(checkpoint: Checkpoint) -> dict[str, Any]:
    """config.json that names the base's dtype, which merged tensors no longer tell."""
    config = checkpoint.config
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else {}
    if any(
        isinstance(c, dict) and (c.get("torch_dtype") or c.get("dtype")) for c in (config, text)
    ):
        return config
    counts = Counter(e.dtype.torch_name for e in checkpoint.state.values() if e.dtype.floating)
    return {**config, "torch_dtype": counts.most_common(1)[0][0]} if counts else config
