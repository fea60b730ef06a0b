"""Distances and similarities."""

from __future__ import annotations

import torch
from table import Tolerance, call, case, refused

aten = torch.ops.aten
ORDERS = (0.0, 1.0, 1.5, 2.0, 3.0, float("inf"))
CLOSE = {
    "tolerance": {torch.float32: Tolerance(1e-4, 1e-3)},
    "reason": "torch multiplies matrices for many rows, which cancels for close vectors",
}

case(
    aten.cdist.default,
    samples=lambda t: [call(t(2, 4, 3), t(2, 5, 3), p) for p in ORDERS],
    **CLOSE,
)
case(
    aten._cdist_forward.default,
    samples=lambda t: [call(t(2, 4, 3), t(2, 5, 3), p, None) for p in ORDERS],
)
case(aten._euclidean_dist.default, samples=lambda t: [call(t(4, 3), t(5, 3))], **CLOSE)
case(
    aten.pdist.default,
    aten._pdist_forward.default,
    samples=lambda t: [call(t(5, 3), p) for p in ORDERS],
)
case(
    aten.pairwise_distance.default,
    samples=lambda t: [call(t(4, 3), t(4, 3), p, 1e-2, k) for p in ORDERS for k in (False, True)],
    fails=[
        refused("integers", dtypes=(torch.int64, torch.int32, torch.uint8)),
        refused("complex numbers", dtypes=(torch.complex64,)),
    ],
)
case(
    aten.cosine_similarity.default,
    samples=lambda t: [
        call(t(4, 3, 2), t(4, 3, 2)),
        call(t(4, 3, 2), t(4, 3, 2), -1, 2.0),
        call(t(4, 1, 2), t(3, 2), 0),
        call(t(4, 3) * 0, t(4, 3)),
    ],
)
