"""Tensor element types, named as in safetensors, and how their bits are held in numpy.

NumPy has no bfloat16 and no fp8.  Here such values travel as unsigned integers of the same
width ("bit views") and get a numeric meaning only inside MLX or torch, so no value is ever
rounded on its way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import mlx.core as mx
    import torch

__all__ = ["DTYPES", "DType", "dtype_from_torch", "from_mx", "parse_dtype", "to_mx", "to_torch"]


@dataclass(frozen=True)
class DType:
    """An element type.

    Attributes:
        name: safetensors' name ("BF16").
        itemsize: bytes an element.
        storage: numpy dtype of the same width that carries the bits ("<u2" for BF16).
        mx_name: attribute of `mlx.core`, or None where MLX lacks the type.
        torch_name: attribute of `torch`.
        floating: True for floating-point types, fp8 included.
    """

    name: str
    itemsize: int
    storage: str
    mx_name: str | None
    torch_name: str
    floating: bool

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy dtype that carries the bits."""
        return np.dtype(self.storage)

    def __repr__(self) -> str:
        return self.name


DTYPES: dict[str, DType] = {
    d.name: d
    for d in (
        DType("F64", 8, "<f8", "float64", "float64", True),
        DType("F32", 4, "<f4", "float32", "float32", True),
        DType("F16", 2, "<f2", "float16", "float16", True),
        DType("BF16", 2, "<u2", "bfloat16", "bfloat16", True),
        DType("F8_E4M3", 1, "|u1", None, "float8_e4m3fn", True),
        DType("F8_E5M2", 1, "|u1", None, "float8_e5m2", True),
        DType("F8_E8M0", 1, "|u1", None, "float8_e8m0fnu", True),
        DType("I64", 8, "<i8", "int64", "int64", False),
        DType("I32", 4, "<i4", "int32", "int32", False),
        DType("I16", 2, "<i2", "int16", "int16", False),
        DType("I8", 1, "|i1", "int8", "int8", False),
        DType("U64", 8, "<u8", "uint64", "uint64", False),
        DType("U32", 4, "<u4", "uint32", "uint32", False),
        DType("U16", 2, "<u2", "uint16", "uint16", False),
        DType("U8", 1, "|u1", "uint8", "uint8", False),
        DType("BOOL", 1, "|b1", "bool_", "bool", False),
        DType("C64", 8, "<c8", "complex64", "complex64", True),
    )
}

_BY_TORCH = {d.torch_name: d for d in DTYPES.values()}
_BY_MX = {d.mx_name: d for d in DTYPES.values() if d.mx_name}


def parse_dtype(name: str) -> DType:
    """The type of a safetensors name ("BF16") or a torch name ("bfloat16", "torch.bfloat16").

    Raises:
        KeyError: the name is none of them.
    """
    name = name.removeprefix("torch.")
    return DTYPES[name] if name in DTYPES else _BY_TORCH[name]


def dtype_from_torch(dtype: torch.dtype) -> DType:
    """The type of a `torch.dtype`; KeyError for one that no checkpoint holds."""
    return _BY_TORCH[str(dtype).removeprefix("torch.")]


def dtype_from_mx(dtype: mx.Dtype) -> DType:
    """The type of an `mlx.core.Dtype`."""
    name = str(dtype).removeprefix("mlx.core.")
    return _BY_MX["bool_" if name == "bool" else name]


def to_mx(bits: np.ndarray[Any, Any], dtype: DType) -> mx.array:
    """The MLX array of a bit view, values unchanged.

    fp8 types, which MLX lacks, become uint8; F64 stays float64 (CPU stream only).
    """
    import mlx.core as mx

    if dtype.name == "BF16":
        return mx.array(bits).view(mx.bfloat16)
    if dtype.name == "F64":
        return mx.array(bits, dtype=mx.float64)
    return mx.array(bits)


def from_mx(array: mx.array) -> np.ndarray[Any, Any]:
    """The bit view of an MLX array: bfloat16 as uint16, everything else as it is."""
    import mlx.core as mx

    if array.dtype == mx.bfloat16:
        array = array.view(mx.uint16)
    return np.array(array, copy=False)


def to_torch(bits: np.ndarray[Any, Any], dtype: DType) -> torch.Tensor:
    """The torch tensor of a bit view, values unchanged."""
    import torch

    array = np.ascontiguousarray(bits).reshape(np.shape(bits))  # numpy makes 0-d arrays 1-d
    if not array.flags.writeable:
        array = array.copy()
    target = getattr(torch, dtype.torch_name)
    if dtype.storage.startswith("<u") and not dtype.name.startswith("U"):
        signed = array.view(array.dtype.str.replace("u", "i"))
        return torch.from_numpy(signed).view(target)
    return torch.from_numpy(array).view(target)
