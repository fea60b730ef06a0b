"""The conformance table: what is tested of each operator, how closely, and what may fail.

An operator whose name PyTorch's OpInfo knows needs no row: its samples are found by name.
A row adds samples of its own, another OpInfo, a tolerance, or expected failures:

    case(
        aten.avg_pool2d.default,
        samples=lambda t: [call(t(1, 2, 7, 7), [3, 3], [2, 2], [1, 1], True, False)],
        fails=[refused("divisor_override", when=lambda s: s.get(6, "divisor_override"))],
    )

`cases_<family>.py` beside this file are read by the runner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.uint8)
DTYPES = (*FLOATS, *INTEGERS, torch.bool, torch.complex64)


@dataclass(frozen=True)
class Tolerance:
    """|actual − expected| ≤ atol + rtol·|expected|."""

    rtol: float
    atol: float


# A few units in the last place of the type: MLX and torch round at other points of a formula.
TOLERANCES: dict[torch.dtype, Tolerance] = {
    torch.float32: Tolerance(2e-5, 1e-5),
    torch.float16: Tolerance(4e-3, 2e-3),
    torch.bfloat16: Tolerance(3e-2, 1.6e-2),
    torch.complex64: Tolerance(2e-5, 1e-5),
}
EXACT = Tolerance(0.0, 0.0)


@dataclass(frozen=True)
class Sample:
    """The arguments of one call of an operator."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def get(self, position: int, name: str, default: Any = None) -> Any:
        """An argument, however it was passed."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    def __str__(self) -> str:
        parts = [_show(a) for a in self.args] + [f"{k}={_show(v)}" for k, v in self.kwargs.items()]
        return "(" + ", ".join(parts) + ")"


def _show(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_show, value)) + "]"
    return repr(value)


def call(*args: Any, **kwargs: Any) -> Sample:
    """A sample as the call would be written."""
    return Sample(args, kwargs)


class TensorMaker:
    """Makes the tensors of samples, in the dtype under test unless told otherwise.

    `t(2, 3)`: random, floats in [-2, 2), integers in [-9, 9] (unsigned [0, 9]).
    `t(2, 3, low=0.1, high=1)`: another range.  `t.of([1, 2])`: these values.
    """

    def __init__(self, dtype: torch.dtype, seed: int = 0) -> None:
        self.dtype = dtype
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(
        self,
        *shape: int,
        low: float | None = None,
        high: float | None = None,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        dtype = dtype or self.dtype
        if dtype == torch.bool:
            return torch.rand(shape, generator=self.generator) < 0.5
        if dtype.is_floating_point or dtype.is_complex:
            low, high = -2.0 if low is None else low, 2.0 if high is None else high
            kind = torch.float32 if dtype.is_floating_point else dtype
            return (
                torch.rand(shape, generator=self.generator, dtype=kind) * (high - low) + low
            ).to(dtype)
        least = 0 if dtype == torch.uint8 else -9
        return torch.randint(
            int(least if low is None else low),
            int(10 if high is None else high),
            shape,
            generator=self.generator,
            dtype=dtype,
        )

    def of(self, values: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A tensor of given values."""
        return torch.tensor(values).to(dtype or self.dtype)


@dataclass(frozen=True)
class ExpectedFailure:
    """Samples that cannot agree, and why.

    Attributes:
        reason: for the reader and the docs page.
        kind: "refused": the lowering raises LoweringError; "differs": the values differ.
        when: which samples; all by default.
        dtypes: of which element types; all by default.
    """

    reason: str
    kind: Literal["refused", "differs"]
    when: Callable[[Sample], Any] = lambda sample: True
    dtypes: tuple[torch.dtype, ...] = DTYPES


def refused(
    reason: str,
    when: Callable[[Sample], Any] = lambda sample: True,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
) -> ExpectedFailure:
    """Samples that the lowering must refuse: every one of them raises LoweringError."""
    return ExpectedFailure(reason, "refused", when, dtypes)


def differs(
    reason: str,
    when: Callable[[Sample], Any] = lambda sample: True,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
) -> ExpectedFailure:
    """Samples whose values differ from torch's; at least one of them must really differ."""
    return ExpectedFailure(reason, "differs", when, dtypes)


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        overload: the operator (an `OpOverload`, or a function of symbolic numbers).
        opinfo: names of further OpInfo entries whose traces contain the operator.
        samples: own samples for a dtype; None if OpInfo's suffice.
        dtypes: element types the own samples are made in.
        tolerance: where it is not the default of `TOLERANCES`; `reason` says why.
        roundings: for sums of products, instead of a tolerance: how many roundings of the size of
            Σ|terms| torch and MLX may be apart; `reason` says where they happen.
        terms: Σ|terms| of each element; by default the operator on absolute values.
        fails: expected failures.
        compare: "values"; "shape" where values are undefined (empty);
            "statistics" for random results: shape, dtype, mean and standard deviation.
        skip: OpInfo samples that torch's own definition leaves open, with the reason.
        limit: at most so many OpInfo samples a dtype.
    """

    overload: Any
    opinfo: tuple[str, ...] = ()
    samples: Callable[[TensorMaker], Iterable[Sample]] | None = None
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    tolerance: Mapping[torch.dtype, Tolerance] = field(default_factory=dict)
    roundings: Mapping[torch.dtype, float] = field(default_factory=dict)
    terms: Callable[[Sample], torch.Tensor] | None = None
    reason: str = ""
    fails: tuple[ExpectedFailure, ...] = ()
    compare: Literal["values", "shape", "statistics"] = "values"
    skip: tuple[tuple[str, Callable[[Sample], Any]], ...] = ()
    limit: int = 16


TABLE: dict[Any, Case] = {}


def case(
    *overloads: Any,
    opinfo: Sequence[str] = (),
    samples: Callable[[TensorMaker], Iterable[Sample]] | None = None,
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    tolerance: Mapping[torch.dtype, Tolerance] | None = None,
    roundings: Mapping[torch.dtype, float] | None = None,
    terms: Callable[[Sample], torch.Tensor] | None = None,
    reason: str = "",
    fails: Sequence[ExpectedFailure] = (),
    compare: Literal["values", "shape", "statistics"] = "values",
    skip: Sequence[tuple[str, Callable[[Sample], Any]]] = (),
    limit: int = 16,
) -> None:
    """Add a row for each overload; a second one raises, and so does an unexplained tolerance."""
    if (tolerance or roundings) and not reason:
        raise ValueError(f"{overloads}: say why the tolerance is not the default one")
    for overload in overloads:
        if overload in TABLE:
            raise ValueError(f"{overload} has two rows")
        TABLE[overload] = Case(
            overload,
            tuple(opinfo),
            samples,
            tuple(dtypes),
            tolerance or {},
            roundings or {},
            terms,
            reason,
            tuple(fails),
            compare,
            tuple(skip),
            limit,
        )
