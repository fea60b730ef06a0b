"""Products of vectors, matrices and batches of them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.registry import Lowering, LoweringError, lowering, lowering_named
from torch2mlx.compiler.lowering.types import is_bool, is_floating, is_integer
from torch2mlx.compiler.runtime import linear_algebra as rt

__all__: list[str] = []

aten = torch.ops.aten


def _discrete(x: Value) -> bool:
    return is_integer(x.dtype) or is_bool(x.dtype)


def _wide(b: Builder, x: Value) -> Value:
    """Half types in single precision, in which torch adds up before it rounds."""
    return b.cast(x, mx.float32) if is_floating(x.dtype) else x


def _product(b: Builder, x: Value, y: Value) -> Any:
    """MLX multiplies matrices of floats only; integers are multiplied and summed."""
    return b.call(rt.integer_matmul if _discrete(x) else mx.matmul, x, y)


@lowering(
    aten.matmul.default,
    aten.mm.default,
    aten.bmm.default,
    aten.mv.default,
    aten.dot.default,
    aten.linalg_matmul.default,
)
def lower_matmul(b: Builder, x: Value, y: Value) -> Any:
    """matmul(Tensor self, Tensor other)."""
    return _product(b, x, y)


@lowering(aten.vdot.default)
def lower_vdot(b: Builder, x: Value, y: Value) -> Any:
    """vdot(Tensor self, Tensor other): the first one conjugated."""
    return _product(b, x if _discrete(x) else b.call(mx.conjugate, x), y)


@lowering(aten.linear.default)
def lower_linear(b: Builder, x: Value, weight: Value, bias: Value | None = None) -> Any:
    """linear(Tensor input, Tensor weight, Tensor? bias=None)."""
    if _discrete(x):
        y = _product(b, x, b.call(mx.transpose, weight))
        return y if bias is None else b.call(mx.add, y, bias)
    return b.call(rt.linear, x, weight, *(() if bias is None else (bias,)))


@lowering(aten.addmm.default, aten.baddbmm.default, aten.addmv.default)
def lower_addmm(
    b: Builder, x: Value, left: Value, right: Value, *, beta: Any = 1, alpha: Any = 1
) -> Any:
    """addmm(Tensor self, Tensor mat1, Tensor mat2, *, Scalar beta=1, Scalar alpha=1)."""
    if _discrete(x):
        return _combine(b, x, _product(b, left, right), beta, alpha)
    scales: dict[str, Any] = {"beta": beta} if beta != 1 else {}
    if alpha != 1:
        scales["alpha"] = alpha
    return b.call(rt.addmm, x, left, right, **scales)


def _combine(b: Builder, x: Value, product: Value, beta: Any, alpha: Any) -> Any:
    if is_bool(x.dtype):
        raise LoweringError("a product of bools that is added to a tensor")
    if _discrete(x):
        beta, alpha = int(beta), int(alpha)  # torch converts both to the type of the tensors
    if alpha != 1:
        product = b.call(mx.multiply, product, alpha)
    if beta == 0:
        return product
    return b.call(mx.add, x if beta == 1 else b.call(mx.multiply, x, beta), product)


@lowering(aten.addbmm.default)
def lower_addbmm(
    b: Builder, x: Value, left: Value, right: Value, *, beta: Any = 1, alpha: Any = 1
) -> Any:
    """addbmm(Tensor self, Tensor batch1, Tensor batch2): the products summed over the batch."""
    x, left, right = (_wide(b, v) for v in (x, left, right))
    product = b.cast(b.call(mx.sum, _product(b, left, right), axis=0), x.dtype)
    return _combine(b, x, product, beta, alpha)


@lowering(aten.addr.default)
def lower_addr(
    b: Builder, x: Value, left: Value, right: Value, *, beta: Any = 1, alpha: Any = 1
) -> Any:
    """addr(Tensor self, Tensor vec1, Tensor vec2): the outer product added."""
    x, left, right = (_wide(b, v) for v in (x, left, right))
    return _combine(b, x, b.call(mx.outer, left, right), beta, alpha)


@lowering(aten.outer.default, aten.ger.default)
def lower_outer(b: Builder, x: Value, y: Value) -> Any:
    """outer(Tensor self, Tensor vec2)."""
    return b.call(mx.outer, x, y)


@lowering(aten.kron.default)
def lower_kron(b: Builder, x: Value, y: Value) -> Any:
    """kron(Tensor self, Tensor other)."""
    return b.call(mx.kron, x, y)


@lowering(aten.inner.default)
def lower_inner(b: Builder, x: Value, y: Value) -> Any:
    """inner(Tensor self, Tensor other)."""
    if x.ndim == 0 or y.ndim == 0:
        return b.call(mx.multiply, x, y)
    if _discrete(x):
        raise LoweringError(f"aten.inner: dtype={x.dtype}")
    return b.call(mx.inner, x, y)


@lowering(aten.tensordot.default)
def lower_tensordot(
    b: Builder, x: Value, y: Value, dims_self: list[int], dims_other: list[int]
) -> Any:
    """tensordot(Tensor self, Tensor other, int[] dims_self, int[] dims_other)."""
    if _discrete(x):
        raise LoweringError(f"aten.tensordot: dtype={x.dtype}")
    if any(x.shape[i] != y.shape[j] for i, j in zip(dims_self, dims_other, strict=True)):
        raise LoweringError("aten.tensordot: a contracted dimension of 1 that is broadcast")
    axes = [[d % x.ndim for d in dims_self], [d % y.ndim for d in dims_other]]
    return b.call(mx.tensordot, x, y, axes)


@lowering(aten.einsum.default)
def lower_einsum(
    b: Builder, equation: str, tensors: list[Value], *, path: list[int] | None = None
) -> Any:
    """einsum(str equation, Tensor[] tensors, *, int[]? path=None); the path is a hint of speed."""
    if any(_discrete(t) for t in tensors):
        raise LoweringError(f"aten.einsum: dtype={tensors[0].dtype}")
    equation = equation.replace(" ", "")
    if "..." in equation:
        equation = _without_ellipsis(equation, [t.ndim for t in tensors])
    return b.call(mx.einsum, equation, *tensors)


def _without_ellipsis(equation: str, ndims: list[int]) -> str:
    """`...` written out; MLX has no ellipsis, and no broadcasting of its dimensions is needed
    where every operand has as many as the widest.
    """
    inputs, arrow, output = equation.partition("->")
    terms = inputs.split(",")
    widths = [
        n - len(term.replace("...", "")) if "..." in term else 0
        for term, n in zip(terms, ndims, strict=True)
    ]
    letters = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in equation][: max(widths)]
    spelled = [
        term.replace("...", "".join(letters[len(letters) - width :]))
        for term, width in zip(terms, widths, strict=True)
    ]
    if not arrow:
        names = "".join(sorted(c for c in set(inputs) if c.isalpha() and inputs.count(c) == 1))
        return ",".join(spelled) + "->" + "".join(letters) + names
    return ",".join(spelled) + "->" + output.replace("...", "".join(letters))


def _structured(function: Any) -> Lowering:
    def lower(b: Builder, x: Value, diagonal: int = 0) -> Any:
        return b.call(function, x, diagonal)

    return lower


lowering(aten.tril.default)(_structured(mx.tril))
lowering(aten.triu.default)(_structured(mx.triu))


@lowering(aten.trace.default)
def lower_trace(b: Builder, x: Value) -> Any:
    """trace(Tensor self): integers in int64."""
    return b.call(mx.trace, b.cast(x, mx.int64) if _discrete(x) else x)


@lowering(aten.linalg_cross.default)
def lower_linalg_cross(b: Builder, x: Value, y: Value, *, dim: int = -1) -> Any:
    """linalg_cross(Tensor self, Tensor other, *, int dim=-1)."""
    return b.call(rt.cross, x, y, dim)


@lowering(aten.cross.default)
def lower_cross(b: Builder, x: Value, y: Value, dim: int | None = None) -> Any:
    """cross(Tensor self, Tensor other, int? dim=None): the first axis of 3."""
    return b.call(rt.cross, x, y, list(x.shape).index(3) if dim is None else dim)


@lowering(aten.bilinear.default)
def lower_bilinear(
    b: Builder, left: Value, right: Value, weight: Value, bias: Value | None = None
) -> Any:
    """bilinear(Tensor input1, Tensor input2, Tensor weight, Tensor? bias=None)."""
    if _discrete(left):
        raise LoweringError(f"aten.bilinear: dtype={left.dtype}")
    return b.call(rt.bilinear, left, right, weight, *(() if bias is None else (bias,)))


@lowering(aten.linalg_multi_dot.default, aten.chain_matmul.default)
def lower_multi_dot(b: Builder, tensors: list[Value]) -> Any:
    """linalg_multi_dot(Tensor[] tensors): multiplied from the left; torch seeks a cheaper order."""
    result = tensors[0]
    for tensor in tensors[1:]:
        result = _product(b, result, tensor)
    return result


@lowering(aten.linalg_vecdot.default)
def lower_vecdot(b: Builder, x: Value, y: Value, *, dim: int = -1) -> Any:
    """linalg_vecdot(Tensor x, Tensor y, *, int dim=-1): the first one conjugated."""
    if _discrete(x):
        raise LoweringError(f"aten.linalg_vecdot: dtype={x.dtype}")
    x, y = _wide(b, x), _wide(b, y)
    if not is_floating(x.dtype):
        x = b.call(mx.conjugate, x)
    return b.call(mx.sum, b.call(mx.multiply, x, y), axis=dim)


@lowering(aten._grouped_mm.default)
def lower_grouped_mm(
    b: Builder,
    x: Value,
    weight: Value,
    offs: Value | None = None,
    bias: Value | None = None,
    out_dtype: Any = None,
) -> Any:
    """_grouped_mm(Tensor self, Tensor mat2, Tensor? offs, Tensor? bias, ScalarType? out_dtype).

    Rows up to offs[0] times the first matrix, rows up to offs[1] times the second, and so on.
    """
    if x.ndim != 2 or weight.ndim != 3 or offs is None or bias is not None:
        raise LoweringError("aten._grouped_mm: other than rows (n, k) with matrices (groups, k, m)")
    # MLX gathers matrices of float32 only on the CPU.
    return b.cast(b.call(rt.grouped_matmul, _wide(b, x), _wide(b, weight), offs), x.dtype)


lowering_named("transformers.grouped_mm_fallback.default")(lower_grouped_mm)
