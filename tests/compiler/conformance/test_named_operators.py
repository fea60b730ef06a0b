"""Operators that other packages define are lowered by name, without the package."""

from __future__ import annotations

import torch
from runner import to_array, to_tensor
from table import TensorMaker

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.registry import lowering_for

t = TensorMaker(torch.float32)


def test_grouped_matmul() -> None:
    x, weight, ends = t(6, 4), t(3, 4, 5), t.of([1, 1, 6], torch.int64)
    product = lowering_for("transformers.grouped_mm_fallback.default")(
        Builder(), *(Value(to_array(each)) for each in (x, weight, ends))
    )
    expected = torch.cat([x[:1] @ weight[0], x[1:] @ weight[2]])
    torch.testing.assert_close(to_tensor(product.array), expected)
