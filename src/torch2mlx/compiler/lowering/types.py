"""Element types: torch's in MLX's terms, and torch's rules of promotion.

MLX promotes by its own table (`bool + 1` is int32, a 0-d array counts like any other), so a
lowering asks here which type torch computes in and casts the operands first.
Source of the rules: `torch.result_type` and `torch._prims_common.elementwise_dtypes`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.registry import LoweringError

if TYPE_CHECKING:
    import mlx.core as mx
    import torch

__all__ = [
    "as_float",
    "as_integer",
    "computation_dtype",
    "is_bool",
    "is_complex",
    "is_floating",
    "is_integer",
    "mx_dtype",
    "number_in",
    "promote",
    "result_dtype",
]

_NAMES = {
    "bool": "bool_",
    **{name: name for name in "uint8 uint16 uint32 uint64 int8 int16 int32 int64".split()},
    **{name: name for name in "float16 bfloat16 float32 complex64".split()},
}


def mx_dtype(dtype: torch.dtype) -> mx.Dtype:
    """The MLX dtype of a torch dtype; LoweringError for one that MLX cannot compute with.

    float64 is refused because MLX has it on the CPU only.
    """
    import mlx.core as mx

    name = str(dtype).removeprefix("torch.")
    if name not in _NAMES:
        raise LoweringError(f"dtype={dtype}: MLX does not compute in it")
    result: mx.Dtype = getattr(mx, _NAMES[name])
    return result


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")


def is_bool(dtype: mx.Dtype) -> bool:
    """Whether it is the boolean type."""
    return _name(dtype) == "bool"


def is_integer(dtype: mx.Dtype) -> bool:
    """Whether it is an integer type, bool excluded."""
    return "int" in _name(dtype)


def is_floating(dtype: mx.Dtype) -> bool:
    """Whether it is a real floating-point type."""
    return "float" in _name(dtype)


def is_complex(dtype: mx.Dtype) -> bool:
    """Whether it is a complex type."""
    return "complex" in _name(dtype)


def _category(operand: Any) -> int:
    """0 bool, 1 integer, 2 floating, 3 complex; of a value or a Python number."""
    if isinstance(operand, Value):
        dtype = operand.dtype
        if is_bool(dtype):
            return 0
        return 1 if is_integer(dtype) else 2 if is_floating(dtype) else 3
    if isinstance(operand, bool):
        return 0
    return 1 if isinstance(operand, int) else 2 if isinstance(operand, float) else 3


def _promoted(left: mx.Dtype | None, right: mx.Dtype) -> mx.Dtype:
    import mlx.core as mx

    if left is None or left == right:
        return right
    if {left, right} == {mx.float16, mx.bfloat16}:
        return mx.float32
    # MLX keeps a half type beside an integer as torch does, and agrees on the integers.
    return mx.result_type(mx.zeros((), left), mx.zeros((), right))


def result_dtype(*operands: Any) -> mx.Dtype:
    """`torch.result_type` of values and Python numbers, as an MLX dtype.

    Tensors with dimensions decide; a 0-d tensor or a number counts only if it is of a higher
    category (bool < integer < floating < complex).
    """
    import mlx.core as mx

    ranked: tuple[mx.Dtype | None, ...]
    dims: mx.Dtype | None = None
    zero: mx.Dtype | None = None
    number: mx.Dtype | None = None
    highest = {"dims": -1, "zero": -1, "number": -1}
    defaults = (mx.bool_, mx.int64, mx.float32, mx.complex64)
    for operand in operands:
        if operand is None:
            continue
        category = _category(operand)
        if not isinstance(operand, Value):
            highest["number"] = max(highest["number"], category)
            number = _promoted(number, defaults[category])
        elif operand.ndim:
            highest["dims"] = max(highest["dims"], category)
            dims = _promoted(dims, operand.dtype)
        else:
            highest["zero"] = max(highest["zero"], category)
            zero = _promoted(zero, operand.dtype)
    ranked = (dims, zero, number)
    result: mx.Dtype | None = None
    reached = -1
    for dtype, category in zip(ranked, highest.values(), strict=True):
        if dtype is None or category <= reached:
            continue
        # A half tensor beside a complex number gives a complex result of single precision.
        result = dtype if result is None else _promoted(result, dtype)
        reached = category
    if result is None:
        raise LoweringError("result_dtype: no operands")
    return result


def promote(b: Builder, *operands: Any, floating: bool = False) -> list[Any]:
    """The operands in the type torch computes in; Python numbers stay numbers.

    Args:
        b: where the casts are recorded.
        operands: values, Python numbers, None.
        floating: integers and bools become float32, as in a true division.
    """
    dtype = result_dtype(*operands)
    if floating:
        dtype = computation_dtype(dtype)
    if not any(isinstance(o, Value) for o in operands):
        operands = (_scalar(b, operands[0], dtype), *operands[1:])
    return [b.cast(o, dtype) if isinstance(o, Value) else number_in(o, dtype) for o in operands]


def _scalar(b: Builder, number: Any, dtype: mx.Dtype) -> Value:
    import mlx.core as mx

    result: Value = b.call(mx.array, number, dtype)
    return result


def number_in(number: Any, dtype: mx.Dtype) -> Any:
    """A Python number that MLX will take in a type: True as 1, 300 wrapped to 44 for uint8."""
    if number is None or isinstance(number, complex):
        return number
    if is_bool(dtype):
        return bool(number)
    if is_integer(dtype):
        bits = dtype.size * 8
        low = 0 if _name(dtype).startswith("u") else -(1 << (bits - 1))
        if isinstance(number, bool):
            return int(number)
        if not low <= number < low + (1 << bits):
            return (int(number) - low) % (1 << bits) + low
        return number
    if isinstance(number, bool):
        return float(number)
    return number


def computation_dtype(dtype: mx.Dtype) -> mx.Dtype:
    """The floating type torch computes a real function in: float32 for integers and bool."""
    import mlx.core as mx

    return dtype if is_floating(dtype) or is_complex(dtype) else mx.float32


def as_float(b: Builder, value: Value) -> Value:
    """The value in its computation type."""
    return b.cast(value, computation_dtype(value.dtype))


def as_integer(b: Builder, value: Value) -> Value:
    """A bool or narrow integer as int64, in which torch sums and accumulates integers."""
    import mlx.core as mx

    if is_bool(value.dtype) or is_integer(value.dtype):
        return b.cast(value, mx.int64)
    return value
