"""Products: integers are exact where MLX can be led to it, refused elsewhere."""

from __future__ import annotations

import torch
from table import FLOATS, INTEGERS, Sample, call, case, refused

aten = torch.ops.aten

ACCUMULATION = "both add up in float32, in another order, and round the sum to the type once"
SUMS: dict[torch.dtype, float] = {
    torch.float32: 8,
    torch.float16: 2,
    torch.bfloat16: 2,
    torch.complex64: 8,
}
case(
    aten.addmm.default,
    aten.addmv.default,
    aten.matmul.default,
    aten.mm.default,
    aten.bmm.default,
    aten.mv.default,
    aten.dot.default,
    aten.addbmm.default,
    roundings=SUMS,
    reason=ACCUMULATION,
)
case(
    aten.baddbmm.default,
    roundings={**SUMS, torch.float16: 3, torch.bfloat16: 3},
    reason="as addmm, and torch rounds the product once more before it is scaled",
)
case(
    aten.addr.default,
    roundings=SUMS,
    reason="torch rounds each of the two products to the type",
    fails=[refused("a product of bools that is added", dtypes=(torch.bool,))],
)
case(
    aten.einsum.default,
    samples=lambda t: [
        call("bij,bjk->bik", [t(2, 3, 4), t(2, 4, 2)]),
        call("b...d,ed->b...e", [t(2, 3, 4, 5), t(6, 5)]),
        call("ii->i", [t(3, 3)]),
    ],
    roundings=SUMS,
    reason=ACCUMULATION,
    fails=[refused("MLX contracts floats only", dtypes=INTEGERS)],
)
case(
    aten.inner.default,
    roundings=SUMS,
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
    roundings=SUMS,
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


def crossed(sample: Sample) -> torch.Tensor:
    """|a₂b₃| + |a₃b₂| and so on."""
    x, y = torch.broadcast_tensors(*(t.abs().float() for t in sample.args[:2]))
    dim = sample.get(2, "dim", None)
    dim = list(x.shape).index(3) if dim is None else dim
    return x.roll(-1, dim) * y.roll(-2, dim) + x.roll(-2, dim) * y.roll(-1, dim)


case(
    aten.cross.default,
    roundings={**SUMS, torch.float16: 3, torch.bfloat16: 3},
    terms=crossed,
    reason="torch rounds both products and their difference to the type",
)
case(
    aten.linalg_cross.default,
    roundings={**SUMS, torch.float16: 3, torch.bfloat16: 3},
    terms=lambda s: crossed(Sample((*s.args[:2], s.get(2, "dim", -1)))),
    reason="torch rounds both products and their difference to the type",
)
case(
    aten.bilinear.default,
    roundings={**SUMS, torch.float16: 6, torch.bfloat16: 6},
    reason="a sum of products of three: torch and MLX round the inner sums to the type",
    fails=[refused("MLX contracts floats only", dtypes=INTEGERS)],
)
case(
    aten.linalg_multi_dot.default,
    roundings={**SUMS, torch.float16: 6, torch.bfloat16: 6},
    reason="every partial product is rounded, and torch may multiply in another order",
)
case(
    aten.chain_matmul.default,
    samples=lambda t: [call([t(2, 3), t(3, 4), t(4, 2)])],
    roundings=SUMS,
    reason=ACCUMULATION,
)
case(
    aten.linalg_vecdot.default,
    roundings=SUMS,
    reason=ACCUMULATION,
    fails=[refused("MLX contracts floats only", dtypes=INTEGERS)],
)
case(
    aten._grouped_mm.default,
    samples=lambda t: [
        call(t(8, 16), t(3, 16, 8), t.of([2, 5, 8], torch.int32)),
        call(t(8, 16), t(3, 16, 8), t.of([0, 8, 8], torch.int32)),
        call(t(3, 8, 16), t(3, 16, 8)),
    ],
    dtypes=(torch.bfloat16,),
    roundings=SUMS,
    reason=ACCUMULATION,
    fails=[refused("batches of matrices, which are a bmm", lambda s: s.args[0].ndim == 3)],
)
