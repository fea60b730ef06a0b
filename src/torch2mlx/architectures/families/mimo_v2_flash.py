"""MiMo V2 Flash: a key for each setting of windowed layers, and kinds of layers as numbers."""

from __future__ import annotations

from typing import Any

from torch2mlx.architectures.registry import Config, Rules

__all__ = ["RULES"]

# transformers implements these settings alone, and saves no keys for them.
_SETTLED = {
    "add_swa_attention_sink_bias": True,
    "add_full_attention_sink_bias": False,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "n_shared_experts": None,
}
_SAME = ("head_dim", "v_head_dim", "num_attention_heads")


def _finish(config: Config, reference: Any) -> Config:
    result = {**_SETTLED, **config}
    if reference is None:
        return result
    rope = reference.rope_parameters
    result.setdefault("layernorm_epsilon", reference.rms_norm_eps)
    result.setdefault(
        "hybrid_layer_pattern", [int(k == "sliding_attention") for k in reference.layer_types]
    )
    result.setdefault("moe_layer_freq", [int(k == "sparse") for k in reference.mlp_layer_types])
    result.setdefault("swa_rope_theta", rope["sliding_attention"]["rope_theta"])
    for name in _SAME:
        result.setdefault(f"swa_{name}", getattr(reference, name))
    result.setdefault("swa_num_key_value_heads", 2 * reference.num_key_value_heads)
    # transformers' number counts the token itself, as the port does; the published key does not.
    result.setdefault("sliding_window_size", reference.sliding_window)
    return result


RULES = (Rules("mimo_v2_flash", finish=_finish),)
