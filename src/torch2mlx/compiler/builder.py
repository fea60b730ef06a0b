"""How a lowering says what to compute: calls of MLX functions on values.

A `Value` knows its shape and dtype because MLX is lazy: every call is made once on arrays that
are never evaluated, so MLX itself infers the result and rejects what it cannot do.  With real
arrays as inputs the same calls compute, which is how lowerings are tested without a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch2mlx.compiler.symbolic import SymbolicInt

__all__ = ["Builder", "Call", "Method", "Value"]


@dataclass(eq=False)
class Value:
    """A tensor in the program.

    Attributes:
        array: an `mx.array` of its shape and dtype (lazy zeros while compiling, data in tests).
        call: the call that makes it; None for an input, parameter or constant.
        index: which output of the call.
        name: of an input, parameter or constant; of another value what methods call it.
        dims: the shape with `SymbolicInt`s where an extent is dynamic; None: as `array` has it.
    """

    array: Any
    call: Call | None = None
    index: int = 0
    name: str = ""
    dims: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape) if self.dims is None else self.dims

    @property
    def ndim(self) -> int:
        return int(self.array.ndim)

    @property
    def dtype(self) -> Any:
        return self.array.dtype


@dataclass(eq=False)
class Call:
    """One function call of the program.

    Attributes:
        function: a function of MLX or mlx-lm, one of `torch2mlx.compiler.runtime`, or a `Method`;
            printed by its name.
        args, kwargs: values, numbers, strings, dtypes, and lists or tuples of these.
        outputs: what it returns.
        sequence: it returns a sequence of arrays, even if of one only.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Value, ...] = ()
    sequence: bool = False


@dataclass(frozen=True)
class Method:
    """A method of the first argument, which is no array (a cache); the function of a `Call`.

    Attributes:
        name: of the method.
        infer: arrays of the shapes that it gives, from stand-ins of its arguments.
    """

    name: str
    infer: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.infer(*args, **kwargs)


@dataclass
class Builder:
    """Collects the calls that lowerings make.

    Attributes:
        calls: in order of execution.
    """

    calls: list[Call] = field(default_factory=list)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function; returns a Value, or a tuple of Values for several arrays."""
        import mlx.core as mx

        result = function(*_arrays(args), **_arrays(kwargs))
        call = Call(function, args, kwargs)
        several = not isinstance(result, mx.array)
        arrays: Sequence[Any] = result if several else (result,)
        call.sequence = several
        call.outputs = tuple(Value(array, call, i) for i, array in enumerate(arrays))
        self.calls.append(call)
        return call.outputs if several else call.outputs[0]

    def cast(self, value: Value, dtype: Any) -> Value:
        """The value in an MLX dtype; itself if it has that dtype."""
        if value.dtype == dtype:
            return value
        import mlx.core as mx

        result: Value = self.call(mx.astype, value, dtype)
        result.dims = value.dims
        return result

    def constant(self, array: Any, name: str = "") -> Value:
        """A value that is part of the program."""
        return Value(array, name=name)


def _arrays(value: Any) -> Any:
    if isinstance(value, Value):
        return value.array
    if isinstance(value, SymbolicInt):  # MLX takes exact ints only in places, e.g. in arange
        return int(value)
    if isinstance(value, list | tuple):
        return type(value)(_arrays(v) for v in value)
    if isinstance(value, dict):
        return {k: _arrays(v) for k, v in value.items()}
    return value
