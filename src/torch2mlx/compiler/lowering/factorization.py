"""Inverses, determinants and factorizations of matrices; torch has them in single precision."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.registry import Lowering, LoweringError, lowering
from torch2mlx.compiler.runtime import factorization as rt

__all__: list[str] = []

aten = torch.ops.aten


def _require_real(name: str, *values: Value) -> None:
    for value in values:
        if value.dtype != mx.float32:
            raise LoweringError(f"{name}: dtype={value.dtype}; MLX factorizes float32 only")


def _of_matrix(name: str, function: Any) -> Lowering:
    def lower(b: Builder, x: Value) -> Any:
        _require_real(name, x)
        return b.call(function, x)

    return lower


for _name, _function in {
    "linalg_inv": rt.inverse,
    "inverse": rt.inverse,
    "linalg_det": rt.determinant,
    "det": rt.determinant,
    "linalg_slogdet": rt.signed_log_determinant,
    "slogdet": rt.signed_log_determinant,
    "logdet": rt.log_determinant,
    "_linalg_slogdet": rt.signed_log_determinant,
}.items():
    lowering(getattr(aten, _name).default)(_of_matrix(_name, _function))


@lowering(aten._linalg_det.default)
def lower_det_with_factors(b: Builder, x: Value) -> Any:
    """_linalg_det(Tensor A) → determinant; the factors, for a gradient, are left out."""
    _require_real("_linalg_det", x)
    return (b.call(rt.determinant, x),)


def _no_errors(b: Builder, x: Value) -> Value:
    """The `info` of a factorization that succeeded: MLX raises where one does not."""
    result: Value = b.call(mx.zeros, x.shape[:-2], mx.int32)
    return result


@lowering(aten.linalg_inv_ex.default)
def lower_inv_ex(b: Builder, x: Value, *, check_errors: bool = False) -> Any:
    """linalg_inv_ex(Tensor A, *, bool check_errors=False) → inverse, info."""
    _require_real("linalg_inv_ex", x)
    return b.call(rt.inverse, x), _no_errors(b, x)


@lowering(aten._linalg_check_errors.default)
def lower_check_errors(b: Builder, info: Value, name: str, *, is_matrix: bool) -> Any:
    """_linalg_check_errors(Tensor info, str api_name, *, bool is_matrix): MLX raises itself."""
    return ()


@lowering(aten.linalg_solve.default)
def lower_solve(b: Builder, a: Value, y: Value, *, left: bool = True) -> Any:
    """linalg_solve(Tensor A, Tensor B, *, bool left=True); B may be a batch of vectors."""
    _require_real("linalg_solve", a, y)
    vectors = y.ndim == 1 or (y.ndim == a.ndim - 1 and y.shape == a.shape[:-1])
    options = {"vectors": True} if vectors else {} if left else {"left": False}
    return b.call(rt.solve, a, y, **options)


@lowering(aten.linalg_solve_ex.default, aten._linalg_solve_ex.default)
def lower_solve_ex(
    b: Builder, a: Value, y: Value, *, left: bool = True, check_errors: bool = False
) -> Any:
    """linalg_solve_ex(Tensor A, Tensor B, *, bool left, bool check_errors) → result, ..."""
    return (lower_solve(b, a, y, left=left),)


@lowering(aten.linalg_solve_triangular.default)
def lower_solve_triangular(
    b: Builder, a: Value, y: Value, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Any:
    """linalg_solve_triangular(Tensor self, Tensor B, *, bool upper, bool left, unitriangular)."""
    _require_real("linalg_solve_triangular", a, y)
    return b.call(rt.solve_triangular, a, y, upper, left, unitriangular)


@lowering(aten.linalg_cholesky.default, aten.cholesky.default)
def lower_cholesky(b: Builder, x: Value, upper: bool = False) -> Any:
    """linalg_cholesky(Tensor self, *, bool upper=False)."""
    _require_real("linalg_cholesky", x)
    return b.call(rt.cholesky, x, upper)


@lowering(aten.linalg_cholesky_ex.default)
def lower_cholesky_ex(
    b: Builder, x: Value, *, upper: bool = False, check_errors: bool = False
) -> Any:
    """linalg_cholesky_ex(Tensor self, *, bool upper=False, bool check_errors) → L, info."""
    return lower_cholesky(b, x, upper), _no_errors(b, x)


@lowering(aten.cholesky_solve.default)
def lower_cholesky_solve(b: Builder, y: Value, factor: Value, upper: bool = False) -> Any:
    """cholesky_solve(Tensor self, Tensor input2, bool upper=False)."""
    _require_real("cholesky_solve", y, factor)
    return b.call(rt.cholesky_solve, y, factor, upper)


@lowering(aten.cholesky_inverse.default)
def lower_cholesky_inverse(b: Builder, factor: Value, upper: bool = False) -> Any:
    """cholesky_inverse(Tensor self, bool upper=False)."""
    _require_real("cholesky_inverse", factor)
    return b.call(rt.cholesky_inverse, factor, upper)


@lowering(aten.linalg_qr.default)
def lower_qr(b: Builder, x: Value, mode: str = "reduced") -> Any:
    """linalg_qr(Tensor A, str mode="reduced") → Q, R."""
    _require_real("linalg_qr", x)
    if mode != "reduced":
        raise LoweringError(f"linalg_qr: mode={mode!r}; MLX has the reduced factors only")
    return b.call(rt.qr, x)


@lowering(aten.linalg_svdvals.default)
def lower_svdvals(b: Builder, x: Value, *, driver: str | None = None) -> Any:
    """linalg_svdvals(Tensor A, *, str? driver=None)."""
    _require_real("linalg_svdvals", x)
    return b.call(rt.singular_values, x)


@lowering(aten.linalg_eigvalsh.default)
def lower_eigvalsh(b: Builder, x: Value, *triangle: str, **options: str) -> Any:
    """linalg_eigvalsh(Tensor self, str UPLO="L")."""
    _require_real("linalg_eigvalsh", x)
    return b.call(rt.eigenvalues, x, *triangle, *options.values())


@lowering(
    aten.linalg_svd.default,
    aten._linalg_svd.default,
    aten._linalg_eigh.default,
    aten.linalg_eigh.default,
    aten.linalg_eig.default,
)
def refuse_vectors(b: Builder, x: Value, *args: Any, **kwargs: Any) -> Any:
    """Refused: the signs of singular vectors and eigenvectors are open."""
    raise LoweringError(
        "singular vectors and eigenvectors have no sign of their own, so MLX may give others than "
        "torch; use linalg.svdvals or linalg.eigvalsh, or compute them outside the model"
    )


@lowering(aten.linalg_matrix_power.default, aten.matrix_power.default)
def lower_matrix_power(b: Builder, x: Value, n: int) -> Any:
    """linalg_matrix_power(Tensor self, int n)."""
    _require_real("linalg_matrix_power", x)
    return b.call(rt.matrix_power, x, n)
