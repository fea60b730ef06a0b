"""Special functions of one operand, and of the normal distribution."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.registry import Lowering, LoweringError, lowering
from torch2mlx.compiler.lowering.types import as_float, is_complex, promote
from torch2mlx.compiler.runtime import special as rt

__all__: list[str] = []

aten = torch.ops.aten


def _in_single_precision(function: Any) -> Lowering:
    """Torch computes them of half types in float32 and rounds the result."""

    def lower(b: Builder, x: Value) -> Any:
        if is_complex(x.dtype):
            raise LoweringError(f"{function.__name__}: dtype={x.dtype}")
        x = as_float(b, x)
        return b.cast(b.call(function, b.cast(x, mx.float32)), x.dtype)

    return lower


_FUNCTIONS = {
    (aten.lgamma, aten.special_gammaln): rt.log_gamma,
    (aten.digamma, aten.special_digamma, aten.special_psi): rt.digamma,
    (aten.i0, aten.special_i0): rt.bessel_i0,
    (aten.special_i0e,): rt.bessel_i0e,
    (aten.special_i1,): rt.bessel_i1,
    (aten.special_entr,): rt.entropy,
    (aten.special_ndtr,): rt.normal_cdf,
    (aten.special_ndtri,): rt.normal_quantile,
}
for _packets, _function in _FUNCTIONS.items():
    lowering(*(packet.default for packet in _packets))(_in_single_precision(_function))


@lowering(aten.special_xlog1py.default)
def lower_xlog1py(b: Builder, x: Value, y: Value) -> Any:
    """special_xlog1py(Tensor self, Tensor other)."""
    return b.call(rt.xlog1py, *promote(b, x, y, floating=True))
