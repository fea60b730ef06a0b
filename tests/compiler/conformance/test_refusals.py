"""What MLX cannot follow is refused when a module is compiled, never computed otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from runner import lower
from table import TensorMaker, call

from torch2mlx.compiler.lowering.registry import LoweringError

aten = torch.ops.aten
t = TensorMaker(torch.float32)
INDEX = t.of([0, 1], torch.int64)
MASK = t.of([True, False, True], torch.bool)

CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], str]] = {
    # Families of layers
    "conv1d of integers": (
        aten.conv1d.default,
        (t(1, 2, 5, dtype=torch.int64), t(3, 2, 2, dtype=torch.int64)),
        {},
        "floating-point",
    ),
    "max_pool2d of bools": (
        aten.max_pool2d.default,
        (t(1, 2, 4, 4, dtype=torch.bool), [2, 2]),
        {},
        "bool",
    ),
    "avg_pool2d of integers": (
        aten.avg_pool2d.default,
        (t(1, 2, 4, 4, dtype=torch.int64), [2, 2]),
        {},
        "avg_pool2d",
    ),
    "adaptive pool to nothing": (
        aten.adaptive_avg_pool2d.default,
        (t(1, 2, 4, 4), [0, 2]),
        {},
        "output_size",
    ),
    "batch_norm that trains": (
        aten.batch_norm.default,
        (t(2, 3), None, None, t(3), t(3), True, 0.1, 1e-5, False),
        {},
        "running statistics",
    ),
    "instance_norm that trains": (
        aten.instance_norm.default,
        (t(2, 3, 4), None, None, t(3), t(3), True, 0.1, 1e-5, False),
        {},
        "running statistics",
    ),
    "rrelu that trains": (aten.rrelu.default, (t(3), 0.1, 0.3, True), {}, "training=True"),
    "attention with dropout": (
        aten.scaled_dot_product_attention.default,
        (t(1, 2, 3, 4),) * 3,
        {"dropout_p": 0.5},
        "dropout_p",
    ),
    "gru with dropout": (
        aten.gru.input,
        (t(5, 1, 3), t(2, 1, 4), [t(12, 3), t(12, 4)] * 2, False, 2, 0.5, True, *[False] * 2),
        {},
        "dropout",
    ),
    "packed gru": (
        aten.gru.data,
        (t(5, 3), INDEX, t(1, 2, 4), [t(12, 3), t(12, 4)], False, 1, 0.0, *[False] * 3),
        {},
        "PackedSequence",
    ),
    "bicubic sampling of a volume": (
        aten.grid_sampler_3d.default,
        (t(1, 2, 3, 3, 3), t(1, 2, 2, 2, 3), 2, 0, False),
        {},
        "bicubic",
    ),
    "bilinear resizing of integers": (
        aten.upsample_bilinear2d.vec,
        (t(1, 2, 4, 4, dtype=torch.uint8), [8, 8], False, None),
        {},
        "dtype",
    ),
    "one_hot of unknown width": (aten.one_hot.default, (INDEX,), {}, "num_classes"),
    # Shapes that depend on values
    "index by a mask": (aten.index.Tensor, (t(3, 2), [MASK]), {}, "mask"),
    "mask beside an index": (
        aten.index_put.default,
        (t(2, 3), [INDEX, MASK], t(2)),
        {},
        "mask",
    ),
    "nonzero": (aten.nonzero.default, (t(3),), {}, "depends on the values"),
    "masked_select": (aten.masked_select.default, (t(3), MASK), {}, "depends on the values"),
    "unique": (aten._unique2.default, (t(3),), {}, "depends on the values"),
    "bincount": (aten.bincount.default, (INDEX,), {}, "depends on the values"),
    "repeats of unknown total": (
        aten.repeat_interleave.self_Tensor,
        (t(2), INDEX),
        {},
        "output_size",
    ),
    # Memory, layouts and types
    "as_strided": (aten.as_strided.default, (t(4), [2, 2], [1, 1]), {}, "reshape"),
    "sparse zeros": (aten.zeros.default, ([2],), {"layout": torch.sparse_coo}, "layout"),
    "float64": (aten.ones.default, ([2],), {"dtype": torch.float64}, "float64"),
    "float8": (aten.ones.default, ([2],), {"dtype": torch.float8_e4m3fn}, "float8"),
    "fractional bounds of integers": (
        aten.arange.start_step,
        (0.5, 3.5, 1),
        {"dtype": torch.int64},
        "bounds",
    ),
    "linspace of integers": (aten.linspace.default, (0, 9, 4), {"dtype": torch.int64}, "dtype"),
    # Mathematics
    "einsum of integers": (aten.einsum.default, ("i,i->", [INDEX, INDEX]), {}, "dtype"),
    "bilinear of integers": (
        aten.bilinear.default,
        (t(2, dtype=torch.int64), t(3, dtype=torch.int64), t(1, 2, 3, dtype=torch.int64)),
        {},
        "dtype",
    ),
    "norm of a matrix": (aten.linalg_norm.default, (t(2, 2), 1), {}, "ord"),
    "singular vectors": (aten.linalg_svd.default, (t(2, 2),), {}, "sign"),
    "eigenvectors": (aten._linalg_eigh.default, (t(2, 2),), {}, "sign"),
    "full factors": (aten.linalg_qr.default, (t(3, 2), "complete"), {}, "mode"),
    "inverse of halves": (aten.inverse.default, (t(2, 2, dtype=torch.float16),), {}, "dtype"),
    "fft of halves": (aten.fft_fft.default, (t(8, dtype=torch.float16),), {}, "half types"),
    "fft of an axis twice": (aten.fft_fftn.default, (t(4, 4), None, [0, 0]), {}, "twice"),
    "loss of training": (
        aten.ctc_loss.IntList,
        (t(5, 1, 3), t(1, 2, dtype=torch.int64), [5], [2]),
        {},
        "training",
    ),
    # Randomness
    "a generator": (aten.rand.default, ([2],), {"generator": torch.Generator()}, "generator"),
    "random complex numbers": (
        aten.randn.default,
        ([2],),
        {"dtype": torch.complex64},
        "complex",
    ),
    "Poisson numbers": (aten.poisson.default, (t(3),), {}, "cannot draw"),
}


@pytest.mark.parametrize("name", CASES)
def test_refused_with_the_attribute_in_the_message(name: str) -> None:
    overload, args, kwargs, words = CASES[name]
    with pytest.raises(LoweringError, match=words):
        lower(overload, call(*args, **kwargs))


def test_an_operator_without_a_lowering_is_named() -> None:
    with pytest.raises(LoweringError, match=r"special_airy_ai\.default has no lowering"):
        lower(aten.special_airy_ai.default, call(t(2)))
