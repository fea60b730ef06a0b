"""Every written tensor, traced back and compared with its source at the speed of reading.

The way back (`torch2mlx.planning.inverse`) shares no arithmetic with the way there: movement is
undone on bit patterns, casts are repeated by torch, quantized values are decoded without MLX.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from torch2mlx.conversion.blocks import row_regions
from torch2mlx.dtypes import DTYPES, DType, to_torch
from torch2mlx.planning.expressions import Bits, Expr, Reader
from torch2mlx.planning.functions import Apply, cast
from torch2mlx.planning.inverse import Chain, NotInvertible, as_numbers, push
from torch2mlx.planning.plan import Output
from torch2mlx.planning.regions import Region
from torch2mlx.quantization.kernel import dequantize_rows
from torch2mlx.quantization.scheme import Scheme
from torch2mlx.verification.audit_report import AuditReport, Kind, TensorCheck
from torch2mlx.verification.rounding import rounding_bounds
from torch2mlx.verification.written import WrittenFiles

__all__ = ["DEFAULT_BLOCK", "audit", "check_tied"]

Array = np.ndarray[Any, Any]

DEFAULT_BLOCK = 8 << 20  # bytes; larger blocks are not faster
_COMPARE_BYTES = 1 << 18  # compared at a time: stays in the cache with the result

# Functions other than casts may be computed differently by torch: roundoffs allowed.
_FUNCTION_ROUNDOFFS = {"F64": 2.0**-50, "F32": 2.0**-21, "F16": 2.0**-9, "BF16": 2.0**-6}


_NOTHING = 1e-3  # a row so much smaller than the largest beside it says nothing of its place


def audit(
    outputs: Sequence[Output],
    files: Sequence[Path],
    reader: Reader,
    *,
    rounded: bool = True,
    block_bytes: int = DEFAULT_BLOCK,
    progress: Callable[[int], None] | None = None,
) -> AuditReport:
    """Compare every tensor of written weight files with the source.

    Args:
        outputs: what each parameter should be (`Plan.outputs`).
        files: the written weight files.
        reader: the source of stored tensors.
        rounded: quantized values were rounded to nearest, so their error has a bound.  False:
            they were chosen on data; each row must be nearer to its source than zeros are.
        block_bytes: bytes of a block; about six blocks exist at a time, as long as a single
            row is no larger and no expression needs whole tensors.
        progress: called with the number of written bytes read since its last call.

    Raises:
        SourceError: a file is damaged.
    """
    with WrittenFiles(files, block_bytes, progress or (lambda _: None)) as written:
        checks = []
        present = []
        for output in outputs:
            problem = _misfit(output, written)
            if problem:
                checks.append(TensorCheck(output.name, 0, "missing", ok=False, detail=problem))
            else:
                present.append(output)
        present.sort(key=lambda output: written.place(output.specs[0].name))
        for output in present:
            written.advance(output.specs[0].name)
            checks.append(_Comparison(output, written, reader, rounded, block_bytes).run())
        known = {spec.name for output in outputs for spec in output.specs}
        for name in written.tensors.keys() - known:
            detail = f"{name}: not expected in the written files"
            checks.append(TensorCheck(name, 0, "unexpected", ok=False, detail=detail))
        order = {output.name: i for i, output in enumerate(outputs)}
        checks.sort(key=lambda check: (order.get(check.name, len(order)), check.name))
        return AuditReport(tuple(checks), written.hashes())


def _misfit(output: Output, written: WrittenFiles) -> str:
    for spec in output.specs:
        info = written.tensors.get(spec.name)
        if info is None:
            return f"{spec.name}: expected {spec.dtype} {list(spec.shape)}, not in the files"
        if (info.dtype, info.shape) != (spec.dtype, spec.shape):
            return (
                f"{spec.name}: expected {spec.dtype} {list(spec.shape)}, "
                f"{info.file.name} has {info.dtype} {list(info.shape)}"
            )
    return ""


class _Comparison:
    """One output against its source, block by block."""

    def __init__(
        self, output: Output, written: WrittenFiles, reader: Reader, rounded: bool, block: int
    ) -> None:
        self.output = output
        self.written = written
        self.reader = reader
        self.rounded = rounded
        self.block = block
        self.kind: Kind = "exact"
        self.recomputed = False
        self.detail = ""
        self.largest = 0.0
        self.squares = [0.0, 0.0]  # of the errors and of the expected values

    def run(self) -> TensorCheck:
        output = self.output
        if output.scheme is None:
            self._plain()
        else:
            self._quantized(output.scheme)
        error, expected = self.squares
        return TensorCheck(
            output.name,
            sum(spec.nbytes for spec in output.specs),
            self.kind,
            ok=not self.detail,
            max_error=self.largest,
            rms=sqrt(error / expected) if expected else sqrt(error),
            recomputed=self.recomputed,
            detail=self.detail,
        )

    def _plain(self) -> None:
        expr, name = self.output.expr, self.output.specs[0].name
        width = expr.shape[-1] if expr.shape else 1
        for before, region in row_regions(expr.shape, width * expr.dtype.itemsize, self.block):
            shape = [len(r) for r in region]
            found = self.written.rows(name, before, prod(shape[:-1])).reshape(shape)
            for piece in self._pieces(expr, region, found):
                if piece.chain and self.kind == "exact":
                    self.kind = "cast"
                if not _all_casts(piece.chain):
                    self.kind = "function"
                if not _same_bits(piece.expected, piece.values[0]):
                    self._unequal(piece, expr.dtype, _rows(before, shape))

    def _quantized(self, scheme: Scheme) -> None:
        output = self.output
        if output.calibrated or not (output.packed or self.rounded):
            self.kind = "calibrated"
        else:
            self.kind = "repacked" if output.packed else "quantized"
        numbers = as_numbers(_before_casts(output.expr) if output.packed else output.expr)
        specs = {spec.name.rpartition(".")[2]: spec for spec in output.specs}
        stored = specs["scales"].dtype
        # Beside the codes there are four float32 arrays: values, bounds, source and difference.
        for before, region in row_regions(numbers.shape, 16 * numbers.shape[-1], self.block):
            shape = [len(r) for r in region]
            parts = {
                part: self.written.rows(spec.name, before, prod(shape[:-1]))
                for part, spec in specs.items()
            }
            if output.calibrated:
                self._same_parts(parts, output.calibrated, region, _rows(before, shape))
            found = dequantize_rows(parts, stored, scheme).reshape(shape)
            if output.packed:
                bounds = np.zeros_like(found)
            elif self.rounded and not output.calibrated:
                bounds = rounding_bounds(parts, stored, scheme).reshape(shape)
            else:
                bounds = np.full_like(found, np.inf)
            for piece in self._pieces(numbers, region, found, bounds):
                self._within(piece, _rows(before, shape))
                if not self.rounded and not output.packed:
                    self._near(piece, _rows(before, shape))

    def _same_parts(
        self, parts: Mapping[str, Array], exprs: Mapping[str, Expr], region: Region, rows: str
    ) -> None:
        """Check that codes, scales and biases are bit for bit those of the calibration."""
        for part, expr in exprs.items():
            expected = expr.read((*region[:-1], range(expr.shape[-1])), self.reader)
            if not self.detail and not _same_bits(expected.reshape(parts[part].shape), parts[part]):
                self.detail = (
                    f"{self.output.module}.{part}, {rows}: not the values that calibration found"
                )

    def _pieces(self, expr: Expr, region: Region, *values: Array) -> Iterator[_Piece]:
        """The parts of a block by where they come from, with what the source says."""
        try:
            traced = [list(push(expr, region, value)) for value in values]
            for leaf in traced[0]:
                _require_forward(leaf.chain)
        except NotInvertible:
            self.recomputed = True
            expected = np.ascontiguousarray(expr.read(region, self.reader))
            yield _Piece(self.output.name, region, (), expected, values)
            return
        for leaf, *others in zip(*traced, strict=True):
            stored = leaf.expr.read(leaf.region, self.reader)
            expected = _evaluated(leaf.chain, stored, leaf.expr.dtype)
            moved = (leaf.value, *(other.value for other in others))
            yield _Piece(leaf.name, leaf.region, leaf.chain, expected, moved)

    def _unequal(self, piece: _Piece, dtype: DType, rows: str) -> None:
        """Look closer at a piece whose bits differ."""
        expected, found = _as_float64(piece.expected, dtype), _as_float64(piece.values[0], dtype)
        with np.errstate(invalid="ignore"):
            error = np.abs(found - expected)
        wrong = _bits(piece.expected) != _bits(piece.values[0])
        if piece.chain or self.recomputed:  # NaN has many bit patterns
            wrong &= ~(np.isnan(expected) & np.isnan(found))
        if self.kind == "function":
            wrong &= ~(error <= np.abs(expected) * _FUNCTION_ROUNDOFFS.get(dtype.name, 0.0))
        self._measure(error, expected)
        self._report(wrong, piece, expected, found, rows)

    def _within(self, piece: _Piece, rows: str) -> None:
        """Check float32 values against their bounds."""
        expected, (found, bound) = piece.expected, piece.values
        with np.errstate(invalid="ignore"):
            error = np.subtract(found, expected)
            np.abs(error, out=error)
        inside = error <= bound
        self._measure(error, expected)
        if not inside.all():
            self._report(~inside, piece, expected, found, rows)

    def _near(self, piece: _Piece, rows: str) -> None:
        """Check values chosen on data: another row, or one in another order, is farther off."""
        expected, found = piece.expected, piece.values[0]
        sizes = np.linalg.norm(expected, axis=-1, keepdims=True)
        errors = np.linalg.norm(found - expected, axis=-1, keepdims=True)
        wrong = (errors >= sizes) & (sizes > _NOTHING * sizes.max(initial=0.0))
        self._report(np.broadcast_to(wrong, expected.shape), piece, expected, found, rows)

    def _measure(self, error: Array, expected: Array) -> None:
        self.largest = max(self.largest, float(error.max(initial=0.0)))
        for i, values in enumerate((error, expected)):
            flat = values.reshape(-1)
            self.squares[i] += float(np.dot(flat, flat))

    def _report(
        self, wrong: Array, piece: _Piece, expected: Array, found: Array, rows: str
    ) -> None:
        if self.detail or not wrong.any():
            return
        first = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
        place = [r[int(i)] for r, i in zip(piece.region, first, strict=True)]
        self.detail = (
            f"{self.output.name}, {rows}: expected {float(expected[first]):.9g} as in "
            f"{piece.name}{place}, found {float(found[first]):.9g}; {np.count_nonzero(wrong):,} of "
            f"{wrong.size:,} elements there are wrong"
        )


@dataclass(frozen=True)
class _Piece:
    """What a part of a block should be: `expected` by the source, `values` as written."""

    name: str
    region: Region
    chain: Chain
    expected: Array
    values: tuple[Array, ...]


def _rows(before: int, shape: Sequence[int]) -> str:
    last = before + prod(shape[:-1]) - 1
    return f"rows {before:,}-{last:,}" if last > before else f"row {before:,}"


def _before_casts(expr: Expr) -> Expr:
    while isinstance(expr, Apply) and _is_cast(expr):
        expr = expr.operands[0]
    return expr


def _is_cast(step: Apply | Bits) -> bool:
    return isinstance(step, Bits) or step.name.startswith("astype ")


def _all_casts(chain: Chain) -> bool:
    return all(_is_cast(step) for step in chain)


def _require_forward(chain: Chain) -> None:
    for step in chain:
        if isinstance(step, Apply) and step.forward is None:
            raise NotInvertible(f"{step.name} is not known in torch")


def _evaluated(chain: Chain, stored: Array, dtype: DType) -> Array:
    """A chain of functions applied by torch; bit views in and out."""
    if not chain:
        return stored
    import torch

    value = to_torch(stored, dtype)
    for step in chain:
        target = getattr(torch, step.dtype.torch_name)
        if isinstance(step, Bits):
            value = value.view(target)
        else:
            assert step.forward is not None
            value = step.forward(value).to(target)
    if value.dtype.is_floating_point and value.itemsize < 4:
        value = value.contiguous().view(torch.int16 if value.itemsize == 2 else torch.uint8)
    result: Array = value.numpy()
    return result.view(chain[-1].dtype.numpy)


def _bits(values: Array) -> Array:
    return values.view(f"<u{values.itemsize}") if values.itemsize <= 8 else values


def _same_bits(expected: Array, found: Array) -> bool:
    """Equality of bit views of one shape, at the speed of memory."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    a = np.ascontiguousarray(expected).reshape(-1).view(np.uint8)
    b = np.ascontiguousarray(found).reshape(-1).view(np.uint8)
    even = a.size - a.size % 8
    words, others = a[:even].view("<u8"), b[:even].view("<u8")
    step = _COMPARE_BYTES // 8
    return bool((a[even:] == b[even:]).all()) and all(
        np.array_equal(words[i : i + step], others[i : i + step])
        for i in range(0, words.size, step)
    )


def _as_float64(bits: Array, dtype: DType) -> Array:
    numbers: Array = to_torch(bits, dtype).double().numpy()
    return numbers


def check_tied(
    name: str,
    expr: Expr,
    kept_name: str,
    kept: Expr,
    reader: Reader,
    *,
    block_bytes: int = DEFAULT_BLOCK,
) -> TensorCheck:
    """Check that a tensor which the config ties to another one, and so is dropped, equals it.

    Args:
        name: the dropped tensor ("lm_head.weight").
        expr: its values in the source.
        kept_name: the tensor that takes its place ("model.embed_tokens.weight").
        kept: its values in the source.
        reader: the source of stored tensors.
        block_bytes: bytes of a block.

    Returns:
        a check of kind "tied"; values of different dtypes are compared in float32.
    """
    detail = ""
    if expr.shape != kept.shape:
        detail = f"is {list(expr.shape)}, {kept_name} is {list(kept.shape)}"
    else:
        if expr.dtype != kept.dtype:
            expr, kept = cast(expr, DTYPES["F32"]), cast(kept, DTYPES["F32"])
        row_bytes = (expr.shape[-1] if expr.shape else 1) * expr.dtype.itemsize
        for before, region in row_regions(expr.shape, row_bytes, block_bytes):
            if not _same_bits(expr.read(region, reader), kept.read(region, reader)):
                shape = [len(r) for r in region]
                detail = f"differs from {kept_name} in {_rows(before, shape)}"
                break
    if detail:
        detail = (
            f"{name}: {detail}, but the config ties them and the tensor is dropped; set "
            '"tie_word_embeddings": false in config.json if the model has a head of its own'
        )
    return TensorCheck(name, expr.nbytes, "tied", ok=not detail, detail=detail)
