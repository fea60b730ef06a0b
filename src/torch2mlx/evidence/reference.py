"""torch2mlx/reference.arrays: inputs and reference outputs of the runs that a certificate lists.

The file has the safetensors format under another ending: mlx-swift takes every *.safetensors
file below a model's folder for weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torch2mlx.errors import SourceError
from torch2mlx.evidence.certificate import Run, StoredOutput
from torch2mlx.evidence.record import FOLDER

if TYPE_CHECKING:
    from torch2mlx.verification.details import ReferenceRun

__all__ = [
    "REFERENCE",
    "StoredRun",
    "load_arguments",
    "output_array",
    "read_arrays",
    "store_call",
    "store_tokens",
    "thinned",
    "within_room",
    "write_arrays",
]

Array = np.ndarray[Any, Any]

REFERENCE = f"{FOLDER}/reference.arrays"

_KEPT = 4096  # elements of an output
_ROOM = 4 << 20  # bytes of the whole file


@dataclass(frozen=True, eq=False)
class StoredRun:
    """A run and its arrays, by name."""

    entry: Run
    arrays: Mapping[str, Any]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self.arrays.values())


def store_tokens(run: ReferenceRun) -> StoredRun:
    """A run of a language model: token ids, and logits of some tokens of the vocabulary."""
    import mlx.core as mx

    arrays = {
        "tokens": run.tokens.astype(np.int32),
        "columns": run.columns,
        "logits": run.logits,
        "top": run.top.astype(np.int32),
    }
    stored = StoredOutput("logits", run.logits.shape, "float32", 1)
    return StoredRun(
        Run(
            f"{len(run.tokens)} tokens, logits of {len(run.columns)} of the vocabulary",
            "",
            {"tokens": {"array": "tokens"}, "columns": {"array": "columns"}},
            (stored,),
            run.tolerance,
            run.relative,
        ),
        {name: mx.array(array) for name, array in arrays.items()},
    )


def store_call(
    number: int,
    name: str,
    method: str,
    arguments: Mapping[str, Any],
    outputs: Sequence[Any],
    tolerance: float,
    relative: float | None,
) -> StoredRun:
    """A call of a compiled module.

    Args:
        number: of the run, which its arrays' names begin with.
        name: what the inputs are.
        method: of the generated class.
        arguments: MLX arrays, numbers and texts, nested in lists, tuples and dicts.
        outputs: the reference's, MLX arrays, numbers and texts, flat.
        tolerance: relative L2 error that is allowed.
        relative: what it was, where that is known.
    """
    import mlx.core as mx

    arrays: dict[str, Any] = {}

    def encoded(value: Any) -> Any:
        if isinstance(value, mx.array):
            key = f"{number}.input{len(arrays)}"
            arrays[key] = value
            return {"array": key}
        if isinstance(value, Mapping):
            return {"dict": [[encoded(k), encoded(v)] for k, v in value.items()]}
        if isinstance(value, list | tuple):
            return {type(value).__name__: [encoded(v) for v in value]}
        return {"value": value}

    given = {key: encoded(value) for key, value in arguments.items()}
    stored = []
    for index, output in enumerate(outputs):
        array = output_array(output)
        key = f"{number}.output{index}"
        step = max(1, -(-array.size // _KEPT))
        arrays[key] = thinned(array, step)
        stored.append(StoredOutput(key, tuple(array.shape), _dtype(array), step))
    run = Run(name, method, given, tuple(stored), tolerance, relative)
    return StoredRun(run, arrays)


def output_array(value: Any) -> Any:
    """What is kept of an output: an MLX array as it is, a number as one, a text as its bytes."""
    import mlx.core as mx

    if isinstance(value, str):
        return mx.array(list(value.encode()), mx.uint8)
    return value if isinstance(value, mx.array) else mx.array(value)


def thinned(array: Any, step: int) -> Any:
    """Every `step`-th element of an array in its order."""
    import mlx.core as mx

    return mx.contiguous(array.reshape(-1)[::step])


def within_room(runs: Sequence[StoredRun], in_order: bool) -> tuple[list[StoredRun], str]:
    """The runs that fit the file, and what to say of the others.

    Args:
        runs: in the order in which they were made.
        in_order: each goes on with the state that the one before left, so none may be left out
            before another.
    """
    kept: list[StoredRun] = []
    left: list[str] = []
    room = _ROOM
    for run in runs:
        if run.nbytes > room or (in_order and left):
            left.append(run.entry.name)
            continue
        room -= run.nbytes
        kept.append(run)
    if not left:
        return kept, ""
    return (
        kept,
        f"inputs and outputs beyond {_ROOM / 2**20:.0f} MiB are not kept: {', '.join(left)}",
    )


def write_arrays(folder: Path, runs: Sequence[StoredRun]) -> Path | None:
    """Write the arrays of all runs; None where there is none."""
    import mlx.core as mx

    if not runs:
        return None
    path = folder / REFERENCE
    path.parent.mkdir(exist_ok=True)
    arrays = {name: array for run in runs for name, array in run.arrays.items()}
    with path.open("wb") as file:
        mx.save_safetensors(file, arrays)
    return path


def read_arrays(folder: Path) -> dict[str, Any]:
    """All arrays of a folder's reference file, as MLX's.

    Raises:
        SourceError: the file is damaged.
    """
    from torch2mlx.dtypes import to_mx
    from torch2mlx.sources.safetensors import SafetensorsSource

    source = SafetensorsSource([folder / REFERENCE])
    try:
        return {
            name: to_mx(source.read(name).reshape(info.shape), info.dtype)
            for name, info in source.tensors.items()
        }
    finally:
        source.close()


def load_arguments(run: Run, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a run, with their arrays.

    Raises:
        SourceError: an array is missing, or an entry is none that `store_call` writes.
    """

    def decoded(entry: Any) -> Any:
        if isinstance(entry, dict) and len(entry) == 1:
            ((kind, value),) = entry.items()
            if kind == "value":
                return value
            if kind == "array" and isinstance(value, str) and value in arrays:
                return arrays[value]
            if kind in ("list", "tuple") and isinstance(value, list):
                items = [decoded(item) for item in value]
                return items if kind == "list" else tuple(items)
            if kind == "dict" and isinstance(value, list):
                return dict(_pairs(value, decoded))
        raise SourceError(f"certificate: argument {str(entry)[:80]!r} of {run.name!r} is unknown")

    return {name: decoded(entry) for name, entry in run.arguments.items()}


def _pairs(value: Sequence[Any], decoded: Any) -> Iterator[tuple[Any, Any]]:
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2:
            raise SourceError(f"certificate: {str(pair)[:80]!r} is no entry of a dict")
        yield decoded(pair[0]), decoded(pair[1])


def _dtype(array: Any) -> str:
    return str(array.dtype).removeprefix("mlx.core.")
