"""Inverses, determinants and factorizations: the error grows with the condition number."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from table import Sample, TensorMaker, Tolerance, call, case, refused

aten = torch.ops.aten
CONDITION = "the condition number multiplies the rounding"
NEAR = {torch.float32: Tolerance(1e-3, 1e-3)}
COMPLEX = refused("MLX factorizes float32 only", dtypes=(torch.complex64,))
SIGNS = refused("the signs of the vectors are open")


def square(t: TensorMaker) -> Iterator[Sample]:
    """Well-conditioned matrices with rows in every order."""
    eye = torch.eye(4)
    yield call(t(4, 4) * 0.2 + eye)
    yield call(t(3, 4, 4) * 0.2 - eye)
    yield call((t(2, 3, 4, 4) * 0.2 + 2 * eye)[..., [2, 0, 1, 3], :])
    yield call(t(1, 1) + 3)


def positive(t: TensorMaker) -> Iterator[Sample]:
    for sample in square(t):
        yield call(sample.args[0] @ sample.args[0].mT)


for packet in (
    *(aten.linalg_inv, aten.inverse, aten.linalg_inv_ex, aten.linalg_det, aten.det),
    *(aten._linalg_det, aten.linalg_slogdet, aten.slogdet, aten.logdet),
):
    case(packet.default, samples=square, tolerance=NEAR, reason=CONDITION, fails=[COMPLEX])
case(
    aten._linalg_slogdet.default,
    samples=square,
    tolerance=NEAR,
    reason=CONDITION,
    fails=[COMPLEX],
)
case(
    aten._linalg_check_errors.default,
    samples=lambda t: [call(t(3, dtype=torch.int32) * 0, "linalg.inv", is_matrix=False)],
)
SYSTEMS = {"tolerance": NEAR, "reason": CONDITION, "fails": [COMPLEX]}


def systems(t: TensorMaker) -> Iterator[Sample]:
    for sample in square(t):
        a = sample.args[0]
        n = a.shape[-1]
        yield call(a, t(*a.shape[:-1], 2))
        yield call(a, t(*a.shape[:-2], 2, n), left=False)
        yield call(a, t(n))


case(aten.linalg_solve.default, samples=systems, **SYSTEMS)
case(aten.linalg_solve_ex.default, samples=systems, **SYSTEMS)
case(aten._linalg_solve_ex.default, samples=systems, **SYSTEMS)


def triangular(t: TensorMaker) -> Iterator[Sample]:
    for sample in square(t):
        a = sample.args[0]
        for upper in (False, True):
            for unit in (False, True):
                # torch reads one triangle only; the other must not matter.
                yield call(a, t(*a.shape[:-1], 2), upper=upper, unitriangular=unit)
                wide = t(*a.shape[:-2], 2, a.shape[-1])
                yield call(a, wide, upper=upper, left=False, unitriangular=unit)


case(aten.linalg_solve_triangular.default, samples=triangular, **SYSTEMS)


def factored(t: TensorMaker) -> Iterator[Sample]:
    for sample in positive(t):
        yield from (Sample(sample.args), Sample(sample.args, {"upper": True}))


case(aten.linalg_cholesky.default, samples=factored, **SYSTEMS)
case(aten.linalg_cholesky_ex.default, samples=factored, **SYSTEMS)
case(
    aten.cholesky.default,
    samples=lambda t: [call(*s.args, u) for s in positive(t) for u in (False, True)],
    **SYSTEMS,
)
case(
    aten.cholesky_solve.default,
    samples=lambda t: [
        call(t(*s.args[0].shape[:-1], 2), torch.linalg.cholesky(s.args[0], upper=upper), upper)
        for s in positive(t)
        for upper in (False, True)
    ],
    **SYSTEMS,
)
case(
    aten.cholesky_inverse.default,
    samples=lambda t: [
        call(torch.linalg.cholesky(s.args[0], upper=upper), upper)
        for s in positive(t)
        for upper in (False, True)
    ],
    **SYSTEMS,
)
case(
    aten.linalg_qr.default,
    samples=lambda t: [call(t(4, 4)), call(t(5, 3)), call(t(2, 3, 3)), call(t(4, 3), "complete")],
    tolerance=NEAR,
    reason=CONDITION,
    fails=[COMPLEX, refused("full factors", lambda s: s.get(1, "mode", "reduced") != "reduced")],
)
case(aten.linalg_svdvals.default, samples=square, **SYSTEMS)
case(
    aten.linalg_eigvalsh.default,
    samples=lambda t: [
        call(s.args[0] + s.args[0].mT, UPLO=u) for s in square(t) for u in ("L", "U")
    ],
    **SYSTEMS,
)
case(
    aten.linalg_svd.default,
    aten._linalg_svd.default,
    aten._linalg_eigh.default,
    aten.linalg_eigh.default,
    aten.linalg_eig.default,
    samples=square,
    fails=[SIGNS],
)
case(
    aten.linalg_matrix_power.default,
    aten.matrix_power.default,
    samples=lambda t: [call(s.args[0], n) for s in square(t) for n in (-2, 0, 1, 5)],
    tolerance=NEAR,
    reason=CONDITION,
    fails=[COMPLEX],
)
