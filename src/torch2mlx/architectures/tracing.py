"""Run a port's own weight mapping on symbolic tensors.

Every mlx-lm port describes its layout in `Model.sanitize`: Python that pops, stacks, splits and
transposes arrays.  Executed on `Traced` tensors instead of arrays, that very code yields an
expression for each output tensor: no second set of rules to keep in step with the port, no
weight read, and the result can be evaluated in row blocks and run backwards.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch2mlx.architectures.movement import MOVEMENT, index, transpose
from torch2mlx.architectures.recording import (
    hole,
    local_inverse,
    mx_dtype,
    numeric_inverse,
    recorded,
    results_of,
)
from torch2mlx.dtypes import DTYPES, dtype_from_mx
from torch2mlx.errors import UnsupportedError
from torch2mlx.planning.expressions import Expr
from torch2mlx.planning.functions import Apply, Whole, cast

__all__ = ["Traced", "trace_call"]


class Traced:
    """A stand-in for `mlx.core.array` that records what is done to it."""

    __array_priority__ = 1000

    def __init__(self, expr: Expr) -> None:
        self.expr = expr

    @property
    def shape(self) -> tuple[int, ...]:
        return self.expr.shape

    @property
    def dtype(self) -> Any:
        return mx_dtype(self.expr.dtype)

    @property
    def ndim(self) -> int:
        return len(self.expr.shape)

    @property
    def size(self) -> int:
        return self.expr.size

    @property
    def itemsize(self) -> int:
        return self.expr.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.expr.nbytes

    @property
    def T(self) -> Traced:
        return Traced(transpose(self.expr))

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Traced]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key: Any) -> Traced:
        return Traced(index(self.expr, key))

    def __neg__(self) -> Any:
        return _dispatch("negative", None, (self,), {})

    def __bool__(self) -> bool:
        raise _depends_on_values("truth of a tensor")

    def item(self) -> Any:
        raise _depends_on_values("item()")

    def tolist(self) -> Any:
        raise _depends_on_values("tolist()")

    def __getattr__(self, name: str) -> Callable[..., Any]:
        import mlx.core as mx

        if name.startswith("__") or not hasattr(mx.array, name):
            raise AttributeError(name)
        return lambda *args, **kwargs: _dispatch(name, None, (self, *args), kwargs)


def _operator(name: str, swapped: bool = False) -> Callable[[Traced, Any], Any]:
    def method(self: Traced, other: Any) -> Any:
        return _dispatch(name, None, (other, self) if swapped else (self, other), {})

    return method


for _symbol, _function in (
    ("add", "add"),
    ("sub", "subtract"),
    ("mul", "multiply"),
    ("truediv", "divide"),
    ("pow", "power"),
    ("and", "bitwise_and"),
    ("or", "bitwise_or"),
    ("rshift", "right_shift"),
    ("lshift", "left_shift"),
    ("matmul", "matmul"),
    ("gt", "greater"),
    ("lt", "less"),
    ("ge", "greater_equal"),
    ("le", "less_equal"),
):
    setattr(Traced, f"__{_symbol}__", _operator(_function))
    if _symbol not in ("gt", "lt", "ge", "le"):  # Python swaps comparisons itself
        setattr(Traced, f"__r{_symbol}__", _operator(_function, swapped=True))


def _depends_on_values(what: str) -> UnsupportedError:
    return UnsupportedError(
        f"this port's weight mapping depends on tensor values ({what}), so it cannot be planned "
        "from headers"
    )


_ELEMENTWISE = frozenset(
    "abs add bitwise_and bitwise_or divide exp from_fp8 left_shift log log1p maximum minimum "
    "multiply negative power reciprocal right_shift rsqrt sigmoid sqrt square subtract "
    "where".split()
)


def _dispatch(name: str, function: Callable[..., Any] | None, args: Any, kwargs: Any) -> Any:
    """Record one MLX call that has a traced argument."""
    import mlx.core as mx

    if name in MOVEMENT:
        given = {k: _plain(v) for k, v in kwargs.items() if k != "stream"}
        moved = MOVEMENT[name](*_plain(args), **given)
        return [Traced(e) for e in moved] if isinstance(moved, list) else Traced(moved)
    function = function or getattr(mx, name, None)
    if function is None:
        raise UnsupportedError(f"this port calls {name}() on weights, which cannot be planned")
    operands: list[Expr] = []

    def holed(value: Any) -> Any:
        if isinstance(value, Traced):
            operands.append(value.expr)
            return hole(len(operands) - 1)
        if name in _ELEMENTWISE and isinstance(value, mx.array) and value.ndim:
            operands.append(_constant(value))  # an operand, so that it is cut by region as well
            return hole(len(operands) - 1)
        if isinstance(value, list | tuple):
            return type(value)(holed(v) for v in value)
        return value

    given_args, given_kwargs = holed(tuple(args)), {k: holed(v) for k, v in kwargs.items()}
    call = recorded(function, given_args, given_kwargs)
    results, container = results_of(call, tuple((o.shape, o.dtype) for o in operands))
    if name in _ELEMENTWISE:
        (dtype, shape), *_ = results
        inverse, forward = numeric_inverse(name, args)
        return Traced(
            Apply(
                name, call, tuple(operands), dtype, shape,
                inverse=inverse, forward=forward, inverse_in=local_inverse(name, args, shape),
            )
        )  # fmt: skip
    if container is None:
        return Traced(Whole(name, call, tuple(operands), *results[0]))
    return container(
        Traced(
            Whole(f"{name}[{i}]", lambda *values, _i=i: call(*values)[_i], tuple(operands), *result)
        )
        for i, result in enumerate(results)
    )


def _plain(value: Any) -> Any:
    """An argument with expressions in place of tensors."""
    import mlx.core as mx

    if isinstance(value, Traced):
        return value.expr
    if isinstance(value, mx.array):
        return _constant(value)
    if isinstance(value, list | tuple):
        return type(value)(_plain(v) for v in value)
    return value


class _MlxProxy(ModuleType):
    """`mlx.core` (or a submodule) as a port sees it during tracing."""

    def __init__(self, module: Any) -> None:
        super().__init__(module.__name__)
        self.__dict__["_module"] = module

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.__dict__["_module"], name)
        if isinstance(real, ModuleType):
            return _MlxProxy(real)
        if name == "array":
            return _ArrayType
        if isinstance(real, type) or not callable(real):
            return real
        if name == "eval":
            return lambda *_: None

        def call(*args: Any, **kwargs: Any) -> Any:
            if _has_traced(args) or _has_traced(kwargs.values()):
                return _dispatch(name, real, args, kwargs)
            return real(*args, **kwargs)

        return call


class _ArrayMeta(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        import mlx.core as mx

        return isinstance(instance, mx.array | Traced)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        import mlx.core as mx

        return mx.array(*args, **kwargs)


class _ArrayType(metaclass=_ArrayMeta):
    """`mlx.core.array` during tracing: traced tensors are instances."""


def _has_traced(values: Any) -> bool:
    return any(
        isinstance(v, Traced) or (isinstance(v, list | tuple) and _has_traced(v)) for v in values
    )


@contextmanager
def _mlx_replaced() -> Iterator[None]:
    """Give every loaded port module the recording `mx`."""
    import mlx.core as mx

    proxy = _MlxProxy(mx)
    changed = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("mlx_lm.models.") and getattr(module, "mx", None) is mx
    ]
    for module in changed:
        module.mx = proxy  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in changed:
            module.mx = mx  # type: ignore[attr-defined]


def trace_call(
    function: Callable[[dict[str, Any]], Mapping[str, Any]], state: Mapping[str, Expr]
) -> dict[str, Expr]:
    """The expressions that a weight-mapping function makes of a state.

    Args:
        function: takes and returns a dict of arrays, such as `Model.sanitize`.
        state: input tensors by name.

    Raises:
        UnsupportedError: the function depends on tensor values or on an operation that cannot
            be recorded.
    """
    inputs = {name: Traced(_as_mlx_loads(expr)) for name, expr in state.items()}
    with _mlx_replaced():
        outputs = function(inputs)
    result: dict[str, Expr] = {}
    for name, value in outputs.items():
        if not isinstance(value, Traced):
            value = Traced(_constant(value))
        result[name] = value.expr
    return result


def _as_mlx_loads(expr: Expr) -> Expr:
    """MLX computes in float32 at most: float64 weights enter as float32."""
    return cast(expr, DTYPES["F32"]) if expr.dtype.name == "F64" else expr


def _constant(value: Any) -> Expr:
    """An array that the port makes itself, such as a default scale."""
    return Whole("constant", lambda: value, (), dtype_from_mx(value.dtype), tuple(value.shape))
