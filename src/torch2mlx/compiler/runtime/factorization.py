"""Inverses, determinants and factorizations of square matrices, in single precision.

MLX has them on the CPU only; an array on the GPU is shared memory, so nothing is copied.
Empty matrices never reach MLX, which ends the process with some of them.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

__all__ = [
    "cholesky",
    "cholesky_inverse",
    "cholesky_solve",
    "determinant",
    "eigenvalues",
    "inverse",
    "log_determinant",
    "matrix_power",
    "qr",
    "signed_log_determinant",
    "singular_values",
    "solve",
    "solve_triangular",
]


def inverse(x: mx.array) -> mx.array:
    """The inverse of matrices."""
    if x.size == 0:
        return x
    return mx.linalg.inv(x, stream=mx.cpu)


def factors(x: mx.array) -> tuple[mx.array, mx.array]:
    """The sign of the rows' permutation in P L U, and the diagonal of U."""
    order, _, upper = mx.linalg.lu(x, stream=mx.cpu)
    order = order.astype(mx.int32)
    # A permutation is odd if it has an odd number of pairs in the wrong order.
    swapped = mx.triu(order[..., :, None] > order[..., None, :], 1)
    swaps = mx.sum(swapped.astype(mx.int32), axis=(-2, -1))
    return mx.where(swaps % 2 == 1, -1.0, 1.0), mx.diagonal(upper, axis1=-2, axis2=-1)


def determinant(x: mx.array) -> mx.array:
    """The determinant of matrices."""
    if x.size == 0:
        return mx.ones(x.shape[:-2], x.dtype)
    sign, diagonal = factors(x)
    return sign * mx.prod(diagonal, axis=-1)


def signed_log_determinant(x: mx.array) -> tuple[mx.array, mx.array]:
    """The sign of the determinant, and the logarithm of its absolute value."""
    if x.size == 0:
        return mx.ones(x.shape[:-2], x.dtype), mx.zeros(x.shape[:-2], x.dtype)
    sign, diagonal = factors(x)
    return (
        sign * mx.prod(mx.sign(diagonal), axis=-1),
        mx.sum(mx.log(mx.abs(diagonal)), axis=-1),
    )


def log_determinant(x: mx.array) -> mx.array:
    """The logarithm of the determinant; NaN where that is negative."""
    sign, logarithm = signed_log_determinant(x)
    return mx.where(sign < 0, mx.nan, logarithm)


def solve(a: mx.array, b: mx.array, vectors: bool = False, left: bool = True) -> mx.array:
    """The solution of `a @ x = b`, or of `x @ a = b`; `vectors`: b is (..., n)."""
    if vectors:
        return solve(a, b[..., None])[..., 0]
    if not left:
        return mx.swapaxes(solve(mx.swapaxes(a, -2, -1), mx.swapaxes(b, -2, -1)), -2, -1)
    batch = mx.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    if a.size == 0 or b.size == 0:
        return mx.zeros((*batch, *b.shape[-2:]), b.dtype)
    a = mx.broadcast_to(a, (*batch, *a.shape[-2:]))
    b = mx.broadcast_to(b, (*batch, *b.shape[-2:]))
    return mx.linalg.solve(a, b, stream=mx.cpu)


def solve_triangular(
    a: mx.array, b: mx.array, upper: bool, left: bool = True, unit_diagonal: bool = False
) -> mx.array:
    """As `solve`, reading one triangle of `a` only; `unit_diagonal`: with ones on its diagonal."""
    if not left:
        a, b = mx.swapaxes(a, -2, -1), mx.swapaxes(b, -2, -1)
        return mx.swapaxes(solve_triangular(a, b, not upper, True, unit_diagonal), -2, -1)
    if unit_diagonal:
        a = (mx.triu(a, 1) if upper else mx.tril(a, -1)) + mx.eye(a.shape[-1], dtype=a.dtype)
    batch = mx.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    if a.size == 0 or b.size == 0:
        return mx.zeros((*batch, *b.shape[-2:]), b.dtype)
    a = mx.broadcast_to(a, (*batch, *a.shape[-2:]))
    b = mx.broadcast_to(b, (*batch, *b.shape[-2:]))
    return mx.linalg.solve_triangular(a, b, upper=upper, stream=mx.cpu)


def cholesky(x: mx.array, upper: bool = False) -> mx.array:
    """The triangular factor of positive definite matrices; reads one triangle only."""
    if x.size == 0:
        return x
    factor = mx.linalg.cholesky(x, upper=upper, stream=mx.cpu)
    return mx.triu(factor) if upper else mx.tril(factor)


def cholesky_solve(b: mx.array, factor: mx.array, upper: bool = False) -> mx.array:
    """The solution of `a @ x = b` from the Cholesky factor of `a`."""
    lower = mx.swapaxes(factor, -2, -1) if upper else factor
    inner = solve_triangular(lower, b, upper=False)
    return solve_triangular(mx.swapaxes(lower, -2, -1), inner, upper=True)


def cholesky_inverse(factor: mx.array, upper: bool = False) -> mx.array:
    """The inverse of a matrix from its Cholesky factor."""
    eye = mx.broadcast_to(mx.eye(factor.shape[-1], dtype=factor.dtype), factor.shape)
    return cholesky_solve(eye, factor, upper)


def qr(x: mx.array) -> tuple[mx.array, mx.array]:
    """Orthonormal columns and an upper triangle whose product is `x`."""
    q, r = mx.linalg.qr(x, stream=mx.cpu)
    return q, r


def singular_values(x: mx.array) -> mx.array:
    """The singular values of matrices, largest first."""
    values: Any = mx.linalg.svd(x, compute_uv=False, stream=mx.cpu)
    result: mx.array = values
    return result


def eigenvalues(x: mx.array, triangle: str = "L") -> mx.array:
    """The eigenvalues of symmetric matrices, smallest first; reads one triangle only."""
    return mx.linalg.eigvalsh(x, UPLO=triangle, stream=mx.cpu)


def matrix_power(x: mx.array, n: int) -> mx.array:
    """The product of n factors `x`; of inverses if n is negative."""
    if n < 0:
        x, n = inverse(x), -n
    result = mx.broadcast_to(mx.eye(x.shape[-1], dtype=x.dtype), x.shape)
    while n:
        if n % 2:
            result = result @ x
        x, n = x @ x, n // 2
    return result
