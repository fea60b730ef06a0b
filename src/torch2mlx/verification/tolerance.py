"""How far two runs of the same model may lie apart, and why.

Both sides compute in float32 from the same weights, so what is left is the order of summation.
Over the tiny and the real models measured, that is 1e-7 to 2e-5 relative L2 at the logits, while
the smallest real fault met (a logit soft cap left out) is above 5e-4; a dropped bias, a swapped
tensor, an ignored window or rope scaling gives 1e-2 to 1.
"""

from __future__ import annotations

__all__ = ["CONVERSION", "GELU", "HALF", "POSITION", "ROUNDING", "TIED", "WRITTEN"]

CONVERSION = 1e-4
"""Relative L2 of the logits, MLX against PyTorch, float32 weights on both sides."""

GELU = 5e-3
"""Relative L2 of the logits up to which the other form of GELU is tried as the cause.

erf-GELU and tanh-GELU differ by up to 5e-4 an activation.  mlx-lm's ports of gemma, starcoder2,
gpt_neox and gpt_bigcode compute the other one and are 5e-5 to 3e-4 apart on random models.  Such
a port fails: the message names the cause, and a port is generated instead.
"""

ROUNDING = 3e-5
"""Relative L2 of the logits that float32 rounding was never seen to reach.

Between this and `CONVERSION` lies what a reader should know: something is computed in another
way, to little effect.
"""

POSITION = 1e-3
"""Relative L2 of one position's logits, above which the position counts as different.

Ten times `CONVERSION`: a single row has fewer terms to average rounding over, and a fault that
starts at a position shows there at 1e-2 or more.
"""

TIED = 0.15
"""Largest share of positions that near-ties of routers may touch in one layer.

Two of 24 tokens at most: with a gap of 1e-3 between neighbouring scores and errors of 1e-6, one
decision in a thousand flips; a fault of the conversion touches all tokens of an expert.
"""

WRITTEN = 1e-4
"""Relative L2 of the logits of a written folder (dequantized values on both sides, float32).

The quantized matrix product sums in another order than a dense one; measured 1e-6 to 3e-5.
"""

HALF = {"float16": 0.02, "bfloat16": 0.16}
"""Relative L2 of the logits of a model that computes in a 16-bit type, against float32.

An operation rounds by at most half the type's spacing, 4.9e-4 and 3.9e-3; some ten roundings a
layer that are not correlated add up to 17 times that over thirty layers, and the bound is twice
as much.  What overflows is infinitely far away.
"""
