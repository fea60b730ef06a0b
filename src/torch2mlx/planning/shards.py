"""Which tensor goes into which file at which byte, known before any is computed.

A safetensors file is a length, a JSON header and the data, so with all dtypes and shapes known
every offset is known too: tensors can be written in any order and in pieces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import prod

from torch2mlx.dtypes import DType
from torch2mlx.errors import OptionError

__all__ = ["ShardPlan", "TensorSpec", "parse_size", "plan_shards", "shard_name"]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to be written."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class ShardPlan:
    """One output file.

    Attributes:
        file: its name.
        header: everything before the data, the length field included.
        offsets: absolute byte offset of each tensor.
        nbytes: size of the finished file.
    """

    file: str
    header: bytes
    offsets: dict[str, int]
    nbytes: int


def parse_size(text: str | int, flag: str = "") -> int:
    """Bytes of "4GB", "500MB", "1.5 GiB" or a plain number; GB is 10^9, GiB is 2^30.

    Args:
        text: to be read.
        flag: of the option that has it, for the message.

    Raises:
        OptionError: not a size, or not positive.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)(B?)\s*", str(text), re.IGNORECASE)
    if not match or (match[3] and not match[2]):
        raise OptionError(
            f"{flag} {text!r} is no size; write for example 4GB, 500MB or 1GiB".lstrip()
        )
    unit = match[2].upper()
    size = int(Decimal(match[1]) * (_BINARY[unit] if match[3] else _UNITS[unit]))
    if size <= 0:
        raise OptionError(f"{flag} {text!r}: the size must be positive".lstrip())
    return size


def _header(specs: Sequence[TensorSpec]) -> tuple[bytes, dict[str, int], int]:
    """(header bytes, absolute offsets, file size); wider types first, so all data are aligned."""
    entries: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    relative: dict[str, int] = {}
    position = 0
    for spec in sorted(specs, key=lambda s: -s.dtype.itemsize):
        relative[spec.name] = position
        entries[spec.name] = {
            "dtype": spec.dtype.name,
            "shape": list(spec.shape),
            "data_offsets": [position, position + spec.nbytes],
        }
        position += spec.nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    base = 8 + len(text)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: base + offset for name, offset in relative.items()}, base + position


def _entry_bound(spec: TensorSpec) -> int:
    """No header entry of this tensor is longer, wherever its data lie."""
    shape = ",".join(map(str, spec.shape))
    return len(json.dumps(spec.name, ensure_ascii=False).encode()) + len(shape) + 90


_HEADER_BOUND = 64  # length field, metadata, braces and padding


def plan_shards(groups: Iterable[Sequence[TensorSpec]], max_shard_size: int) -> list[ShardPlan]:
    """Distribute tensors over files, none larger than a bound that includes its header.

    Args:
        groups: tensors in order; those of one group (weight, scales, biases) share a file where
            they fit.
        max_shard_size: bytes; exact.

    Raises:
        OptionError: a single tensor does not fit; it cannot be split.
    """
    shards: list[list[TensorSpec]] = [[]]
    used = _HEADER_BOUND
    for group in groups:
        sizes = [spec.nbytes + _entry_bound(spec) for spec in group]
        parts = [(list(group), sum(sizes))]
        if _HEADER_BOUND + sum(sizes) > max_shard_size:
            parts = [([spec], size) for spec, size in zip(group, sizes, strict=True)]
        for part, size in parts:
            if used + size > max_shard_size and shards[-1]:
                shards.append([])
                used = _HEADER_BOUND
            if used + size > max_shard_size:
                raise OptionError(
                    f"{part[0].name} alone needs {used + size:,} bytes and a tensor cannot be "
                    f"split over files; use --max-shard-size {used + size} or more"
                )
            shards[-1].extend(part)
            used += size
    plans = []
    for i, specs in enumerate(shards, start=1):
        header, offsets, nbytes = _header(specs)
        plans.append(ShardPlan(shard_name(i, len(shards)), header, offsets, nbytes))
    return plans


def shard_name(number: int, count: int) -> str:
    """File name of shard `number` (from 1) of `count`, as mlx-lm and mlx-swift expect it."""
    if count == 1:
        return "model.safetensors"
    return f"model-{number:05d}-of-{count:05d}.safetensors"
