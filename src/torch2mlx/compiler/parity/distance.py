"""How far an MLX array is from torch's tensor."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch2mlx.dtypes import dtype_from_torch, from_mx

if TYPE_CHECKING:
    import torch

__all__ = ["in_torch_order", "relative_error"]


def relative_error(want: Any, got: Any, rounded: bool = False) -> float:
    """Relative L2 error; infinite for another shape, kind, or place of NaN and Inf.

    Args:
        want: torch's tensor, or a number.
        got: the generated model's.
        rounded: floating-point types may differ in width.
    """
    import mlx.core as mx
    import torch

    if not isinstance(want, torch.Tensor):
        return 0.0 if want == got else math.inf
    if not isinstance(got, mx.array) or tuple(got.shape) != tuple(want.shape):
        return math.inf
    floats = want.is_floating_point() and mx.issubdtype(got.dtype, mx.floating)
    if not (rounded and floats) and dtype_from_torch(want.dtype).mx_name != _mx_name(got):
        return math.inf
    want = want.detach().cpu()
    bits = torch.from_numpy(from_mx(got).copy()) if got.size else torch.zeros(want.shape)
    have = bits.view(torch.bfloat16) if got.dtype == mx.bfloat16 else bits
    if want.numel() == 0:
        return 0.0
    if not (want.is_floating_point() or want.is_complex()):
        return 0.0 if bool((want == have).all()) else math.inf
    wide = torch.complex128 if want.is_complex() else torch.float64
    a, b = want.to(wide), have.to(wide)
    finite = torch.isfinite(a.abs())
    if not torch.equal(finite, torch.isfinite(b.abs())) or not torch.equal(
        a.real[~finite].nan_to_num(), b.real[~finite].nan_to_num()
    ):
        return math.inf
    a, b = a[finite], b[finite]
    scale = float(a.abs().square().sum().sqrt())
    distance = float((a - b).abs().square().sum().sqrt())
    return distance / scale if scale else distance


def _mx_name(array: Any) -> str:
    name = str(array.dtype).removeprefix("mlx.core.")
    return "bool_" if name == "bool" else name


def in_torch_order(tensor: torch.Tensor, array: Any) -> list[Any]:
    """The array in the orders of axes that may be torch's: MLX's layers have channels last.

    Where both have the tensor's shape (as many channels as rows and columns), both are given.
    """
    import mlx.core as mx

    if array.ndim != tensor.ndim or array.ndim < 3:
        return [array]
    orders = [array, mx.moveaxis(array, -1, 1)]
    return [a for a in orders if tuple(a.shape) == tuple(tensor.shape)] or [array]
