"""Tiny random checkpoints over the architectures that both transformers and mlx-lm know.

Each case is a configuration small enough to build, save and run in about a second.  Rope bases
differ from their defaults, sliding windows are far shorter than the input, and every parameter
is redrawn so that attention is sharp: a swapped tensor, an ignored window or an ignored rope
base changes the logits by far more than rounding does.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo_case import VOCABULARY, Case
from zoo_dense import DENSE
from zoo_experts import EXPERT
from zoo_hybrids import HYBRID

__all__ = ["CASES", "REFUSED", "VOCABULARY", "Case"]

CASES: tuple[Case, ...] = (*DENSE, *EXPERT, *HYBRID)

# Part of the reason why no port gives the right logits; a case that is right although it stands
# here fails the test.
REFUSED: Mapping[str, str] = {
    "gemma": "form of GELU",
    "starcoder2": "form of GELU",
    "gpt_neox": "form of GELU",
    "gpt_bigcode": "form of GELU",
    "mistral-window": "sliding window",
    "qwen2-window": "sliding window",
    "gemma2-window": "sliding window",
    "qwen3-window": "sliding window",
    "qwen2_moe-dense-layer": "does not fit",
    "nanochat": "rms_norm_eps",
    "recurrent_gemma": "rms_norm_eps",
    "phi3-window": "sliding window",
    "starcoder2-window": "sliding window",
    "mixtral-window": "sliding window",
    "olmo": "ai2-olmo",
    "bitnet": "ternary",
    "phimoe": "sparse mixing",
    "ernie4_5_moe": "selects experts",
    "gpt_oss-untruncated": "YaRN",
    "minimax": "MiniMax-Text-01",
    "hunyuan_v1_moe": "no port",
    "flex_olmo": "no port",
    "bamba": "no port",
    "mamba2-groups": "n_groups",
    "jamba": "chosen experts",
    "phi3-longrope": "long rotary",
}
