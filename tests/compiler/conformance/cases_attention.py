"""Attention: masks of both kinds, also with rows that see nothing, heads and scales."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from table import FLOATS, Sample, TensorMaker, call, case, differs, refused

aten = torch.ops.aten
NOTHING = [[True, False, True, True], [False] * 4, [True, True, False, False]]


def attention(t: TensorMaker) -> Iterator[Sample]:
    q, k, v = t(2, 4, 3, 8), t(2, 4, 4, 8), t(2, 4, 4, 8)
    seen = torch.tensor(NOTHING)
    yield call(q, k, v)
    yield call(q, k, v, scale=0.3)
    yield call(q, k, t(2, 4, 4, 5))
    yield call(q, k[:, :, :3], v[:, :, :3], None, 0.0, True)
    yield call(q, k, v, None, 0.0, True)
    yield call(k, q, q, None, 0.0, True)
    yield call(q, k, v, seen)
    yield call(q, k, v, t(3, 4))
    yield call(q, k, v, t(3, 4).masked_fill(~seen, -float("inf")))
    yield call(q, k, v, t(2, 1, 3, 4))
    yield call(q, k, v, t(2, 4, 3, 4) > 0, scale=1.0)
    yield call(q, k, v, t(2, 1, 1, 4) > 0)
    yield call(q, k, v, torch.full((3, 4), torch.finfo(q.dtype).min, dtype=q.dtype))
    yield call(q, k[:, :2], v[:, :2], enable_gqa=True)
    yield call(q, k[:, :1], v[:, :1], seen, enable_gqa=True)
    yield call(q[0], k[0], v[0])
    yield call(q[0], k[0], v[0], seen)
    yield call(q[0], k[0], v[0], t(4, 3, 4))
    yield call(q[None], k[None], v[None], seen)
    yield call(t(3, 2, 4, 3, 8), t(3, 2, 4, 4, 8), t(3, 2, 4, 4, 8), t(3, 2, 1, 3, 4))
    yield call(q, k, v, None, 0.5)


def through_scores(sample: Sample) -> torch.Tensor:
    """max|v| · (1 + Σ|q||k| · scale + |mask|): what roundings of the scores amount to."""
    q, k, v = (t.abs().float() for t in sample.args[:3])
    scale = sample.get(6, "scale") or q.shape[-1] ** -0.5
    reach = q.shape[-1] * q.max() * k.max() * scale
    mask = sample.get(3, "attn_mask")
    if mask is not None and mask.dtype != torch.bool:
        reach = reach + mask.abs().float().nan_to_num(posinf=0).clamp(max=100).max()
    return v.max() * (1 + reach)


case(
    aten.scaled_dot_product_attention.default,
    samples=attention,
    dtypes=FLOATS,
    roundings={torch.float32: 4, torch.float16: 2, torch.bfloat16: 2},
    terms=through_scores,
    reason="torch rounds the scores to the type, and exp makes of it a relative error that grows "
    "with the score; MLX keeps them in float32",
    fails=[
        refused("dropout that is switched on", lambda s: s.get(4, "dropout_p", 0.0) > 0),
        differs(
            "a row masked by the least float16 alone: torch adds it in float32 and still sees the "
            "scores, MLX on the CPU adds it in float16 and sees none",
            lambda s: (
                s.get(3, "attn_mask") is not None
                and s.args[3].dtype == torch.float16
                and (s.args[3] == torch.finfo(torch.float16).min).all()
            ),
            (torch.float16,),
        ),
    ],
)


def flash(t: TensorMaker) -> Iterator[Sample]:
    q, k = t(2, 4, 3, 8), t(2, 4, 4, 8)
    yield call(q, k, k)
    yield call(q, k[:, :, :3], k[:, :, :3], 0.0, True)
    yield call(q, k, k, attn_mask=t(2, 1, 3, 4), scale=0.2)


case(aten._scaled_dot_product_flash_attention_for_cpu.default, samples=flash)
