"""Products: integers are exact where MLX can be led to it, refused elsewhere."""

from __future__ import annotations

import torch
from table import FLOATS, INTEGERS, Tolerance, call, case, refused

aten = torch.ops.aten

ACCUMULATION = "sums of products in another order"
LOOSE = {
    torch.float32: Tolerance(1e-4, 1e-4),
    torch.float16: Tolerance(1e-2, 5e-2),
    torch.bfloat16: Tolerance(5e-2, 4e-1),
    torch.complex64: Tolerance(1e-4, 1e-4),
}
case(
    aten.addmm.default,
    aten.baddbmm.default,
    aten.addmv.default,
    aten.matmul.default,
    aten.mm.default,
    aten.bmm.default,
    aten.mv.default,
    aten.dot.default,
    aten.addbmm.default,
    tolerance=LOOSE,
    reason=ACCUMULATION,
)
case(
    aten.addr.default,
    tolerance=LOOSE,
    reason="torch rounds each of the two products to the half type",
    fails=[refused("a product of bools that is added", dtypes=(torch.bool,))],
)
case(
    aten.einsum.default,
    samples=lambda t: [
        call("bij,bjk->bik", [t(2, 3, 4), t(2, 4, 2)]),
        call("b...d,ed->b...e", [t(2, 3, 4, 5), t(6, 5)]),
        call("ii->i", [t(3, 3)]),
    ],
    tolerance=LOOSE,
    reason=ACCUMULATION,
    fails=[refused("MLX contracts floats only", dtypes=INTEGERS)],
)
case(
    aten.inner.default,
    tolerance=LOOSE,
    reason=ACCUMULATION,
    fails=[
        refused(
            "MLX contracts floats only",
            when=lambda s: s.args[0].ndim and s.args[1].ndim,
            dtypes=INTEGERS,
        )
    ],
)
case(
    aten.tensordot.default,
    tolerance=LOOSE,
    reason=ACCUMULATION,
    fails=[
        refused("MLX contracts floats only", dtypes=INTEGERS),
        refused(
            "a contracted dimension of 1 that is broadcast",
            when=lambda s: any(
                s.args[0].shape[i] != s.args[1].shape[j]
                for i, j in zip(s.args[2], s.args[3], strict=True)
            ),
        ),
    ],
)
case(aten.ger.default, samples=lambda t: [call(t(2), t(3)), call(t(0), t(3))], dtypes=FLOATS)
case(
    aten.linalg_matmul.default,
    samples=lambda t: [call(t(2, 3), t(3, 4)), call(t(2, 2, 3), t(3)), call(t(3), t(3))],
    dtypes=(*FLOATS, torch.int64),
)
case(
    aten.cross.default,
    aten.linalg_cross.default,
    tolerance={
        torch.float16: Tolerance(1e-2, 5e-2),
        torch.bfloat16: Tolerance(5e-2, 4e-1),
    },
    reason="a difference of products, each rounded",
)
