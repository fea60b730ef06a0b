"""Promotion is torch's, for every pair of operands."""

from __future__ import annotations

from itertools import product
from typing import Any

import mlx.core as mx
import pytest
import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.registry import LoweringError
from torch2mlx.compiler.lowering.types import mx_dtype, promote, result_dtype

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.complex64,
]
OPERANDS: list[Any] = [torch.zeros(shape, dtype=d) for d in DTYPES for shape in ((), (2,))]
OPERANDS += [True, 3, 2.5]


def value_of(operand: Any) -> Any:
    if isinstance(operand, torch.Tensor):
        return Value(mx.zeros(operand.shape, mx_dtype(operand.dtype)))
    return operand


def test_result_type_is_that_of_torch() -> None:
    wrong = []
    for left, right in product(OPERANDS, OPERANDS):
        if not isinstance(left, torch.Tensor) and not isinstance(right, torch.Tensor):
            continue
        expected = torch.result_type(left, right)
        if expected == torch.complex32:  # torch.float16 beside a complex 0-d tensor
            continue
        found = result_dtype(value_of(left), value_of(right))
        if found != mx_dtype(expected):
            wrong.append((str(left), str(right), expected, found))
    assert wrong == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128, torch.float8_e4m3fn])
def test_a_type_that_mlx_does_not_compute_in_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(LoweringError, match=str(dtype)):
        mx_dtype(dtype)


def test_a_number_beside_bytes_wraps_as_in_torch() -> None:
    expected = torch.tensor([1, 2], dtype=torch.uint8) + -1
    array, number = promote(Builder(), Value(mx.array([1, 2], mx.uint8)), -1)
    assert (array.array + number).tolist() == expected.tolist()
