"""Carry out a plan: stream row blocks from source tensors into finished files.

Memory holds a few blocks, whatever the size of the model: the offsets of all tensors are known,
so each block goes to its place in the file as soon as it is computed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from torch2mlx.dtypes import DType
from torch2mlx.errors import DestinationError, NumericError, OptionError
from torch2mlx.planning.expressions import Apply, Expr, Reader, sources_of
from torch2mlx.planning.plan import Output, Plan
from torch2mlx.planning.regions import Region, full
from torch2mlx.planning.shards import ShardPlan, TensorSpec

__all__ = ["DEFAULT_MEMORY_LIMIT", "execute", "row_regions"]

DEFAULT_MEMORY_LIMIT = 10**9  # bytes above the import footprint
_MIN_MEMORY_LIMIT = 64 * 10**6

# At any time a block exists as file bytes, as MLX input, as MLX output, and once more in the
# reader that works ahead, with scratch space for the kernels.
_BLOCKS_IN_FLIGHT = 16
_MAX_BLOCK = 4 << 20  # larger blocks leave the caches and are slower

Array = np.ndarray[Any, Any]
Progress = Callable[[int], None]


def execute(
    plan: Plan,
    reader: Reader,
    folder: Path,
    *,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    progress: Progress | None = None,
) -> list[Path]:
    """Write all weight files of a plan.

    Args:
        plan: what to write.
        reader: the source of stored tensors.
        folder: existing folder; files get their final names in it.
        memory_limit: bytes that blocks may take in all.
        progress: called with the bytes written since its last call.

    Returns:
        the files, each flushed to the disk.

    Raises:
        NumericError: NaN, Inf or overflow; names the tensor.
        DestinationError: the disk is full or cannot be written.
        OptionError: the memory limit is too small to work in.
    """
    if memory_limit < _MIN_MEMORY_LIMIT:
        raise OptionError(
            f"--memory-limit {memory_limit:,} bytes is too small; at least "
            f"{_MIN_MEMORY_LIMIT:,} are needed"
        )
    block = min(memory_limit // _BLOCKS_IN_FLIGHT, _MAX_BLOCK)
    written = []
    with _mlx_cache_limited_to(4 * block):
        for shard in plan.shards:
            outputs = [o for o in plan.outputs if any(s.name in shard.offsets for s in o.specs)]
            path = folder / shard.file
            try:
                _write_shard(shard, outputs, reader, path, block, progress or (lambda _: None))
            except OSError as error:
                raise _destination_error(path, error) from error
            written.append(path)
    return written


@contextmanager
def _mlx_cache_limited_to(nbytes: int) -> Iterator[None]:
    """Freed buffers that MLX keeps for reuse count as memory of the process."""
    import mlx.core as mx

    before = mx.set_cache_limit(nbytes)
    try:
        yield
    finally:
        mx.set_cache_limit(before)


def _destination_error(path: Path, error: OSError) -> DestinationError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DestinationError(f"{path.name}: the disk is full; free space or choose another disk")
    return DestinationError(f"{path.name}: cannot be written: {error.strerror or error}")


def _write_shard(
    shard: ShardPlan,
    outputs: list[Output],
    reader: Reader,
    path: Path,
    block: int,
    progress: Progress,
) -> None:
    """Reading and computing one block overlap with writing the one before."""
    with path.open("xb") as file, ThreadPoolExecutor(max_workers=1) as writer:
        handle = file.fileno()
        os.truncate(handle, shard.nbytes)
        _write_at(handle, shard.header, 0)
        pending = None
        for pieces in _blocks(shard, outputs, reader, block):
            if pending is not None:
                progress(pending.result())
            pending = writer.submit(_write_pieces, handle, pieces)
        if pending is not None:
            progress(pending.result())
        os.fsync(handle)


def _write_pieces(handle: int, pieces: list[tuple[int, Array]]) -> int:
    return sum(_write_at(handle, a.reshape(-1).view(np.uint8).data, at) for at, a in pieces)


def _write_at(handle: int, data: bytes | memoryview, offset: int) -> int:
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.pwrite(handle, view[done:], offset + done)
    return done


def _blocks(
    shard: ShardPlan, outputs: list[Output], reader: Reader, block: int
) -> Iterator[list[tuple[int, Array]]]:
    """[(file offset, values)] of each block of each output, as far as they are in this shard."""
    for output in outputs:
        here = {spec.name: spec for spec in output.specs if spec.name in shard.offsets}
        if output.parts is not None:
            module = output.name.removesuffix("weight")
            for part, expr in output.parts.items():
                if module + part in here:
                    yield from _plain(here[module + part], expr, reader, shard, block)
        elif output.scheme is None:
            yield from _plain(here[output.name], output.expr, reader, shard, block)
        else:
            yield from _quantized(output, here, reader, shard, block)


def row_regions(shape: tuple[int, ...], row_bytes: int, block: int) -> Iterator[tuple[int, Region]]:
    """Cut a tensor into regions of whole trailing axes that are contiguous in row-major order.

    Args:
        shape: of the tensor.
        row_bytes: bytes of one index of the last-but-one axis (a row of the last axis).
        block: wanted bytes a region.

    Yields:
        (number of rows before it, region); a "row" is one index over all axes but the last.
    """
    if len(shape) < 2:
        yield 0, full(shape)
        return
    rows_wanted = max(1, block // max(1, row_bytes))
    # The axis to cut: the outermost whose single index is no more than a block.
    axis = 0
    while axis < len(shape) - 2 and prod(shape[axis + 1 : -1]) > rows_wanted:
        axis += 1
    step = max(1, rows_wanted // max(1, prod(shape[axis + 1 : -1])))
    before = 0
    for outer in np.ndindex(*shape[:axis]):
        for start in range(0, shape[axis], step):
            stop = min(start + step, shape[axis])
            region = (
                *(range(i, i + 1) for i in outer),
                range(start, stop),
                *full(shape[axis + 1 :]),
            )
            yield before, region
            before += (stop - start) * prod(shape[axis + 1 : -1])


def _plain(
    spec: TensorSpec, expr: Expr, reader: Reader, shard: ShardPlan, block: int
) -> Iterator[list[tuple[int, Array]]]:
    row_bytes = (expr.shape[-1] if expr.shape else 1) * expr.dtype.itemsize
    for before, region in row_regions(expr.shape, row_bytes, block):
        values = np.ascontiguousarray(expr.read(region, reader))
        _check_finite(values, spec.name, expr, region, reader)
        yield [(shard.offsets[spec.name] + before * row_bytes, values)]


def _quantized(
    output: Output, here: dict[str, TensorSpec], reader: Reader, shard: ShardPlan, block: int
) -> Iterator[list[tuple[int, Array]]]:
    from torch2mlx.quantization.kernel import quantize_rows

    assert output.scheme is not None
    expr, module = output.expr, output.name.removesuffix("weight")
    row_bytes = expr.shape[-1] * expr.dtype.itemsize
    for before, region in row_regions(expr.shape, row_bytes, block):
        values = np.ascontiguousarray(expr.read(region, reader))
        _check_finite(values, output.name, expr, region, reader)
        parts = quantize_rows(values.reshape(-1, expr.shape[-1]), expr.dtype, output.scheme)
        pieces = []
        for part, quantized in parts.items():
            name = module + part
            if name in here:
                part_row = here[name].shape[-1] * here[name].dtype.itemsize
                pieces.append((shard.offsets[name] + before * part_row, quantized))
        yield pieces


# Exponent masks: a value is NaN or Inf when all of its exponent bits are set.
_EXPONENT = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000, "F64": 0x7FF0000000000000}


def _is_finite(values: Array, dtype: DType) -> bool:
    mask = _EXPONENT.get(dtype.name)
    if mask is None or not values.size:
        return True
    bits = values.reshape(-1).view(f"<u{dtype.itemsize}")
    scratch = np.empty(min(bits.size, 1 << 17), bits.dtype)  # stays in the L2 cache
    for start in range(0, bits.size, scratch.size):
        part = bits[start : start + scratch.size]
        masked = np.bitwise_and(part, bits.dtype.type(mask), out=scratch[: part.size])
        if masked.max() == mask:
            return False
    return True


def _check_finite(values: Array, name: str, expr: Expr, region: Region, reader: Reader) -> None:
    """Raise NumericError if a block holds NaN or Inf, telling overflow from a bad source."""
    if not expr.dtype.floating or _is_finite(values, expr.dtype):
        return
    stored = ", ".join(dict.fromkeys(repr(leaf.name) for leaf in sources_of(expr)))
    rows = f"rows {region[0].start}-{region[0][-1]}" if region else "the value"
    before = expr
    while isinstance(before, Apply) and before.name.startswith("astype"):
        before = before.operands[0]
    if before is not expr:
        original = np.ascontiguousarray(before.read(region, reader))
        if _is_finite(original, before.dtype):
            raise NumericError(
                f"{name} (from {stored}), {rows}: finite in {before.dtype.torch_name}, but "
                f"overflows {expr.dtype.torch_name}; use --dtype bfloat16 or --dtype float32"
            )
    raise NumericError(
        f"{name} (from {stored}), {rows}: contains NaN or Inf; the checkpoint is damaged or its "
        "training diverged. Get another copy of it: nothing was written"
    )
