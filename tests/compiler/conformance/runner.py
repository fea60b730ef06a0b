"""Runs an operator in torch and its lowering in MLX on the same arguments, and compares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import mlx.core as mx
import torch
from opinfo import entries_for, samples_of
from table import DTYPES, EXACT, TABLE, TOLERANCES, Case, ExpectedFailure, Sample, TensorMaker
from torch.utils import _pytree as pytree

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.registry import LoweringError, lowering_for, registered
from torch2mlx.compiler.lowering.types import mx_dtype
from torch2mlx.dtypes import dtype_from_mx, dtype_from_torch, from_mx, to_mx


@cache
def load_table() -> dict[Any, Case]:
    """All rows, and an empty one for every lowering that has none."""
    for path in sorted(Path(__file__).parent.glob("cases_*.py")):
        import_module(path.stem)
    return {op: TABLE.get(op) or Case(op) for op in {**registered(), **TABLE}}


def name_of(overload: Any) -> str:
    """aten.add.Tensor, or the function's name."""
    return str(overload) if isinstance(overload, torch._ops.OpOverload) else overload.__name__


def dtypes_of(row: Case) -> list[torch.dtype]:
    """The element types there are samples in."""
    found = {d for e in entries_for(row.overload, row.opinfo) for d in e.supported_dtypes("cpu")}
    if row.samples:
        found |= set(row.dtypes)
    return [dtype for dtype in DTYPES if dtype in found]


def sample_limit(row: Case, dtype: torch.dtype) -> int:
    """At most so many samples of an OpInfo entry: fewer where it is not float32."""
    return row.limit if dtype == torch.float32 else max(1, row.limit // 4)


def samples(row: Case, dtype: torch.dtype) -> Iterator[Sample]:
    """OpInfo's samples, then the row's own."""
    found = samples_of(row.overload, row.opinfo, dtype, sample_limit(row, dtype))
    own = row.samples(TensorMaker(dtype)) if row.samples and dtype in row.dtypes else ()
    first: Sample | None = None
    for sample in chain(found, own):
        if not any(when(sample) for _, when in row.skip):
            first = first or sample
            yield sample
    if first is not None:
        yield from _degenerate(row.overload, first)


def _degenerate(overload: Any, sample: Sample) -> Iterator[Sample]:
    """A sample of an elementwise operator with 0-d and with empty tensors."""
    if torch.Tag.pointwise not in getattr(overload, "tags", ()):
        return
    leaves = pytree.tree_leaves((sample.args, sample.kwargs))
    if any(isinstance(leaf, torch.Tensor) and leaf.numel() == 0 for leaf in leaves):
        return
    for change in (lambda t: t.reshape(-1)[0], lambda t: t.new_empty((0, 3))):
        args, kwargs = pytree.tree_map_only(torch.Tensor, change, (sample.args, sample.kwargs))
        try:
            overload(*args, **kwargs)
        except Exception:  # not an elementwise use of the operator
            continue
        yield Sample(tuple(args), dict(kwargs))


def to_array(tensor: torch.Tensor, strided: bool = False) -> mx.array:
    """The MLX array with the values of a tensor; `strided`: not contiguous, if it can be."""
    dtype = dtype_from_torch(tensor.dtype)
    tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
    if tensor.dtype == torch.bfloat16:
        array = to_mx(tensor.view(torch.uint16).numpy(), dtype)
    else:
        array = to_mx(tensor.numpy(), dtype)
    if not strided or array.size < 2:
        return array
    # Axes stored in reverse, and every second element of what is stored.
    stored = mx.repeat(mx.transpose(array)[..., None], 2, axis=-1)
    mx.eval(stored)
    return mx.transpose(stored[..., 0])


def to_tensor(array: mx.array) -> torch.Tensor:
    """The tensor with the values of an MLX array."""
    dtype = dtype_from_mx(array.dtype)
    tensor = torch.from_numpy(from_mx(array).copy())
    return tensor.view(getattr(torch, dtype.torch_name))


def lower(overload: Any, sample: Sample, strided: bool = False) -> tuple[Any, Builder]:
    """The results of the lowering: MLX arrays and numbers in the operator's own structure."""
    b = Builder()
    args, kwargs = pytree.tree_map_only(
        torch.Tensor,
        lambda t: Value(to_array(t, strided)),
        (tuple(sample.args), dict(sample.kwargs)),
    )
    return lowering_for(overload)(b, *args, **kwargs), b


class DisagreementError(AssertionError):
    """Values, shapes or the number of results differ."""


def compare(row: Case, sample: Sample, strided: bool = False) -> None:
    """Run both; raises DisagreementError, or LoweringError if the lowering refuses."""
    if row.compare == "statistics":
        torch.manual_seed(0)
        mx.random.seed(0)
    expected = row.overload(*sample.args, **sample.kwargs)
    actual, _ = lower(row.overload, sample, strided)
    several = isinstance(expected, list | tuple)
    wanted = list(expected) if several else [] if expected is None else [expected]
    found = list(actual) if isinstance(actual, list | tuple) else [actual]
    # Trailing results, those for a backward pass, may be left out.
    wanted = wanted[: len(found)] if found else wanted
    if len(wanted) != len(found):
        raise DisagreementError(f"{len(found)} results, expected {len(wanted)}")
    for i, (left, right) in enumerate(zip(found, wanted, strict=True)):
        try:
            _compare_one(row, sample, left, right)
        except AssertionError as error:
            where = f"result {i}: " if several else ""
            raise DisagreementError(f"{where}{error}") from None


def _compare_one(row: Case, sample: Sample, actual: Any, expected: Any) -> None:
    if not isinstance(expected, torch.Tensor):
        if actual != expected:
            raise DisagreementError(f"{actual!r}, expected {expected!r}")
        return
    if not isinstance(actual, Value):
        raise DisagreementError(f"a {type(actual).__name__}, expected a tensor")
    if tuple(actual.array.shape) != tuple(expected.shape):
        raise DisagreementError(
            f"shape {tuple(actual.array.shape)}, expected {tuple(expected.shape)}"
        )
    wanted = mx_dtype(expected.dtype)
    # The caller of a lowering casts every result to the dtype that torch recorded.
    tensor = to_tensor(actual.array.astype(wanted))
    if row.compare == "shape":
        return
    if row.compare == "statistics":
        _compare_statistics(tensor, expected)
        return
    expected = expected.detach().resolve_conj().resolve_neg().contiguous()
    if expected.dtype in row.roundings:
        _compare_sums(row, sample, tensor, expected)
        return
    tolerance = row.tolerance.get(expected.dtype, TOLERANCES.get(expected.dtype, EXACT))
    torch.testing.assert_close(
        tensor,
        expected,
        rtol=tolerance.rtol,
        atol=tolerance.atol,
        equal_nan=True,
    )


def _compare_sums(row: Case, sample: Sample, actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Within so many roundings, each of half a unit in the last place of Σ|terms|."""
    terms = (row.terms or _sum_of_magnitudes(row.overload))(sample).broadcast_to(expected.shape)
    unit = torch.finfo(expected.dtype).eps / 2
    wide = torch.complex64 if expected.is_complex() else torch.float32
    error = (actual.to(wide) - expected.to(wide)).abs()
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    wrong = ~same & ~(error <= row.roundings[expected.dtype] * unit * terms)
    if wrong.any():
        worst = (error / (unit * terms)).where(wrong, 0).max()
        raise DisagreementError(
            f"{int(wrong.sum())} of {wrong.numel()} elements are up to {worst:.1f} roundings off, "
            f"expected at most {row.roundings[expected.dtype]}"
        )


def _sum_of_magnitudes(overload: Any) -> Callable[[Sample], torch.Tensor]:
    def terms(sample: Sample) -> torch.Tensor:
        args, kwargs = pytree.tree_map_only(
            torch.Tensor,
            lambda t: t.abs().float() if t.is_floating_point() or t.is_complex() else t,
            (sample.args, dict(sample.kwargs)),
        )
        scales = {k: abs(v) if k in ("alpha", "beta") else v for k, v in kwargs.items()}
        result: torch.Tensor = overload(*args, **scales)
        return result

    return terms


def _compare_statistics(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Mean and spread of random results within four standard errors of both samples.

    Where values repeat, as those of randint do, the same ones must occur.
    """
    if expected.numel() < 100:
        return
    left, right = actual.double(), expected.double()
    error = 4 * (2 * right.var() / right.numel()) ** 0.5 + 1e-9
    if (left.mean() - right.mean()).abs() > error:
        raise DisagreementError(
            f"mean {left.mean():.4f}, expected {right.mean():.4f} ± {error:.4f}"
        )
    if not 0.8 * right.std() - 1e-9 <= left.std() <= 1.2 * right.std() + 1e-9:
        raise DisagreementError(f"spread {left.std():.4f}, expected {right.std():.4f}")
    values, counts = right.unique(return_counts=True)
    if counts.min() >= 20 and not torch.equal(left.unique(), values):
        raise DisagreementError(f"values {left.unique().tolist()}, expected {values.tolist()}")


@dataclass
class Outcome:
    """What happened to the samples of one operator in one dtype."""

    agreed: int = 0
    expected_failures: dict[ExpectedFailure, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def ran(self) -> int:
        return self.agreed + sum(self.expected_failures.values()) + len(self.problems)


def run(row: Case, dtype: torch.dtype) -> Outcome:
    """Run all samples of a dtype; a failure that was expected but did not come is a problem.

    Every second sample is given as arrays that are not contiguous.
    """
    outcome = Outcome()
    matched: dict[ExpectedFailure, list[bool]] = {}
    for position, sample in enumerate(samples(row, dtype)):
        expectation = next((f for f in row.fails if dtype in f.dtypes and f.when(sample)), None)
        problem: str | None = None
        refusal = False
        try:
            compare(row, sample, strided=position % 2 == 1)
        except LoweringError as error:
            problem, refusal = f"refused: {error}", True
        except DisagreementError as error:
            problem = str(error)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        if expectation is not None:
            failed = refusal if expectation.kind == "refused" else problem is not None
            matched.setdefault(expectation, []).append(failed)
            if failed:
                count = outcome.expected_failures
                count[expectation] = count.get(expectation, 0) + 1
            elif expectation.kind == "refused":
                outcome.problems.append(f"{sample}: should be refused ({expectation.reason})")
            else:
                outcome.agreed += 1
        elif problem is None:
            outcome.agreed += 1
        else:
            outcome.problems.append(f"{sample}: {problem}")
    for expectation, failures in matched.items():
        if expectation.kind == "differs" and not any(failures):
            outcome.problems.append(f"no longer fails, remove: {expectation.reason}")
    return outcome
