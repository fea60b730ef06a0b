"""The sizes of a tiny model: one rule for each key that transformers' configs use for a size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "EXPERT_KEYS",
    "GROUP_KEYS",
    "INDEX_HEADS",
    "LATENT",
    "LAYER_KEYS",
    "LONG",
    "RUN_LENGTH",
    "TOP_K_KEYS",
    "VOCABULARY",
    "Boundary",
    "Sizes",
    "new_value",
]

RUN_LENGTH = 64
"""Tokens of a run that passes every boundary of a shrunk config."""

VOCABULARY = 256
_HEAD = 16
_UNREACHED = 4 * RUN_LENGTH  # a boundary that the run must not cross

_HIDDEN = ("hidden_size", "n_embd", "d_model")
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads")
LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
EXPERT_KEYS = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_num_experts",
)
TOP_K_KEYS = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_k",
    "moe_topk",
    "moe_top_k",
    "top_k_experts",
)
GROUP_KEYS = ("n_group", "num_expert_group")
# Feed-forward and other widths that scale with the hidden size.
_WIDTHS = (
    "intermediate_size",
    "moe_intermediate_size",
    "intermediate_size_mlp",
    "dense_intermediate_size",
    "shared_intermediate_size",
    "shared_expert_intermediate_size",
    "moe_shared_expert_intermediate_size",
    "ffn_hidden_size",
    "expert_ffn_hidden_size",
    "share_expert_dim",
    "n_inner",
    "lru_width",
    "moe_hidden_size",
    "moe_latent_size",
    "dim_model_base",
    "block_ff_dim",
    "block_dim",
    "conv_dim",
    "conv_dim_out",
)
# Sequence lengths at which a model starts to behave differently → value in the tiny config.
_WINDOWS = {
    "sliding_window": 9,
    "sliding_window_size": 9,
    "attention_window_size": 9,
    "attention_chunk_size": 16,
    "floor_scale": 16,
    "index_topk": 12,
}
LONG = 24  # original length of long and dynamic rope in the tiny config
# Scores of sparse attention are sums of relus, one a head: with few heads many are exactly zero,
# and which of equal scores is chosen is up to the library.  At 16 heads two in 10⁵ are zero.
INDEX_HEADS = 16
# Values that only bound others: small enough to act on activations of size one.
_CAPS = {
    "mamba_d_state": 16,
    "ssm_state_size": 16,
    "state_size": 16,
    "chunk_size": 16,
    "mamba_chunk_size": 16,
    "block_size": 16,
    "block_multiple_of": 16,
    "laurel_rank": 8,
    "hidden_size_per_layer_input": 8,
    "zero_expert_num": 4,
    "index_n_heads": INDEX_HEADS,
    "index_head_dim": 16,
    "n_positions": 2 * RUN_LENGTH,
    "max_seq_len": 2 * RUN_LENGTH,
    "clip_qkv": 1.0,
    "max_window_layers": 1,
}
LATENT = {"q_lora_rank": 24, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8}


@dataclass(frozen=True)
class Boundary:
    """A sequence length at which a model changes its behaviour.

    Attributes:
        key: name in the config.
        original: its value.
        shrunk: its value in the tiny config.
        whole_run: True if the length of the whole run counts (long and dynamic rope), so that
            earlier positions change as well.
    """

    key: str
    original: int
    shrunk: int
    whole_run: bool = False


@dataclass
class Sizes:
    """Old and new sizes of one language model."""

    old: Mapping[str, Any]
    max_context: int | None
    new: dict[str, Any] = field(default_factory=dict)
    found: list[Boundary] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.hidden = int(_first(self.old, _HIDDEN) or 64)
        self.heads = int(_first(self.old, _HEADS) or 0)
        kv = _first(self.old, _KV_HEADS)
        if kv is None and isinstance(self.old.get("attn_config"), Mapping):
            kv = _first(self.old["attn_config"], _KV_HEADS)
        self.kv = int(kv if isinstance(kv, int) else self.heads)
        if self.old.get("multi_query"):
            self.kv = 1
        self.new_heads, self.new_kv = _shrink_heads(self.heads, self.kv)
        head = self.old.get("head_dim") if self.heads else None
        self.head = int(head or (self.hidden // self.heads if self.heads else 0))
        self.latent = self.old.get("kv_lora_rank") is not None
        self.new_head = min(self._new_head(), self.head) if self.head else 0
        if self.latent:
            self.new_hidden = 64
        elif self.heads and self.heads * self.head == self.hidden:
            self.new_hidden = self.new_heads * self.new_head
        else:
            self.new_hidden = 96 if self.new_heads * self.new_head != 96 else 80
        self.new_hidden = min(self.new_hidden, self.hidden)

    def _new_head(self) -> int:
        """A head width of which an even number of values is rotated."""
        rope = self.old.get("rope_parameters") or self.old.get("rope_scaling") or {}
        places = [self.old, rope, *(v for v in rope.values() if isinstance(v, Mapping))]
        shares = [
            float(p["partial_rotary_factor"]) for p in places if p.get("partial_rotary_factor")
        ]
        widths = (_HEAD, 18, 20, 24)
        return next((n for n in widths if all(int(n * s) % 2 == 0 for s in shares)), 2 * _HEAD)

    def width(self, value: int) -> int:
        """A feed-forward width at the new scale."""
        if value == self.hidden:
            return self.new_hidden
        scaled = round(value * self.new_hidden / self.hidden / 8) * 8
        return min(value, max(24, min(scaled, 4 * self.new_hidden)))

    def boundary(self, key: str, value: int, shrunk: int, whole_run: bool = False) -> int:
        """The tiny config's value of a sequence length, noted for messages."""
        longest = self.old.get("max_position_embeddings") if not whole_run else None
        within = not isinstance(longest, int) or value < longest
        if not within or (self.max_context is not None and value >= self.max_context):
            return min(value, _UNREACHED)
        self.found.append(Boundary(key, value, min(value, shrunk), whole_run))
        return min(value, shrunk)


def _first(values: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((values[k] for k in keys if isinstance(values.get(k), int)), None)


def _shrink_heads(heads: int, kv: int) -> tuple[int, int]:
    """Fewer heads, with multi-head, multi-query or grouped attention kept as it is."""
    if not heads:
        return 0, 0
    if kv in (0, heads):
        return min(heads, 4), min(heads, 4)
    ratio = heads // kv if heads % kv == 0 else 2
    ratio = ratio if ratio <= 4 else (4 if ratio % 2 == 0 else 3)
    new_kv = min(kv, 2)
    return new_kv * ratio, new_kv


def new_value(key: str, value: Any, sizes: Sizes) -> Any:
    """The tiny value of a key, or None to leave it alone."""
    if isinstance(value, list) and value and all(isinstance(v, int) for v in value):
        if key in _WIDTHS or key.startswith(_HEADS):
            return [new_value(key.removesuffix("_per_layer"), v, sizes) for v in value]
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    rule = _RULES.get(key)
    new = rule(value, sizes) if rule else None
    return round(new) if isinstance(value, int) and isinstance(new, float) else new


def _experts(value: int, sizes: Sizes) -> int:
    return min(value, 8)


def _top_k(value: int, sizes: Sizes) -> int:
    experts = _first(sizes.old, EXPERT_KEYS) or value
    if isinstance(sizes.old.get("ffn_config"), Mapping):
        experts = _first(sizes.old["ffn_config"], EXPERT_KEYS) or experts
    return min(value, 8) if value == experts else min(value, 3)


def _groups(value: int, sizes: Sizes) -> int:
    # A group is scored by its two best experts, so it keeps at least two of the eight.
    return min(value, 4)


def _top_groups(value: int, sizes: Sizes) -> int:
    groups = _first(sizes.old, GROUP_KEYS) or value
    return min(value, 4) if value == groups else min(value, 2)


def _value_head(value: int, sizes: Sizes) -> int:
    return 16 if value == sizes.old.get("qk_nope_head_dim") else 12


def _qk_head(value: int, sizes: Sizes) -> int:
    return LATENT["qk_nope_head_dim"] + LATENT["qk_rope_head_dim"]


def _head_dim(value: int, sizes: Sizes) -> int:
    old = sizes.old
    if sizes.latent:
        if value == old.get("qk_rope_head_dim"):
            return LATENT["qk_rope_head_dim"]
        if value == old.get("v_head_dim"):
            return _value_head(value, sizes)
        return _qk_head(value, sizes)
    if not sizes.heads:  # Mamba-2 names its state-space heads so
        return min(value, 16)
    return min(value, sizes.new_head) if value == sizes.head else min(value, 2 * sizes.new_head)


def _rotary_dim(value: int, sizes: Sizes) -> int:
    return max(2, value * sizes.new_head // max(sizes.head, 1) // 2 * 2)


def _state_heads(value: int, sizes: Sizes) -> int:
    """State-space heads: as many as fill the inner width at 16 values each."""
    old = sizes.old
    size = int(_first(old, ("mamba_d_head", "mamba_head_dim", "head_dim")) or 0)
    inner = int(old.get("mamba_expand") or old.get("expand") or 2)
    if value * size == inner * sizes.hidden:
        return inner * sizes.new_hidden // min(size, 16)
    if value * size == old.get("mamba_d_ssm"):
        return _state_width(value * size, sizes) // min(size, 16)
    return min(value, 8)


def _state_width(value: int, sizes: Sizes) -> int:
    inner = int(sizes.old.get("mamba_expand") or 2)
    return inner * sizes.new_hidden if value == inner * sizes.hidden else min(value, 96)


def _state_rank(value: int, sizes: Sizes) -> int:
    automatic = value == -(-sizes.hidden // 16)
    return -(-sizes.new_hidden // 16) if automatic else min(value, 8)


def _linear_value_heads(value: int, sizes: Sizes) -> int:
    keys = int(sizes.old.get("linear_num_key_heads") or value)
    return min(keys, 2) * min(2, max(1, value // keys))


def _linear_value_dim(value: int, sizes: Sizes) -> int:
    return 16 if value == sizes.old.get("linear_key_head_dim") else 24


def _per_head(value: float, sizes: Sizes) -> float:
    """A number that stands for the head width keeps its ratio to it."""
    return value * sizes.new_head / max(sizes.head, 1)


def _inverse_per_head(value: float, sizes: Sizes) -> float:
    return value * max(sizes.head, 1) / max(sizes.new_head, 1)


_Rule = Callable[[Any, Sizes], Any]


def _cap(most: float) -> _Rule:
    return lambda v, s: min(v, most)


def _window(key: str, shrunk: int) -> _Rule:
    return lambda v, s: s.boundary(key, v, shrunk) if v > 0 else None


_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_HIDDEN, lambda v, s: s.new_hidden),
    **dict.fromkeys(_HEADS, lambda v, s: max(1, v * s.new_heads // s.heads) if s.heads else None),
    **dict.fromkeys(_KV_HEADS, lambda v, s: s.new_kv if v == s.kv else min(v, s.new_kv)),
    **dict.fromkeys(_WIDTHS, lambda v, s: s.width(v) if v else None),
    **dict.fromkeys(EXPERT_KEYS, _experts),
    **dict.fromkeys(TOP_K_KEYS, _top_k),
    **dict.fromkeys(GROUP_KEYS, _groups),
    **{k: _cap(cap) for k, cap in _CAPS.items()},
    **{k: _cap(rank) for k, rank in LATENT.items()},
    **{k: _window(k, to) for k, to in _WINDOWS.items()},
    "vocab_size": lambda v, s: min(v, VOCABULARY),
    "vocab_size_per_layer_input": lambda v, s: min(v, VOCABULARY),
    "topk_group": _top_groups,
    "head_dim": _head_dim,
    "global_head_dim": lambda v, s: min(v, 2 * s.new_head),
    "v_head_dim": _value_head,
    "qk_head_dim": _qk_head,
    "rotary_dim": _rotary_dim,
    "num_sliding_attention_heads": lambda v, s: max(s.new_kv, v * s.new_heads // s.heads),
    "num_global_key_value_heads": lambda v, s: min(v, s.new_kv),
    "n_groups": lambda v, s: min(v, 2),
    "mamba_n_groups": lambda v, s: min(v, 2),
    "mamba_n_heads": _state_heads,
    "mamba_num_heads": _state_heads,
    "num_heads": lambda v, s: _state_heads(v, s) if not s.heads else min(v, 4),
    "mamba_d_head": lambda v, s: min(v, 16),
    "mamba_head_dim": lambda v, s: min(v, 16),
    "mamba_d_ssm": _state_width,
    "mamba_dt_rank": _state_rank,
    "time_step_rank": _state_rank,
    "linear_num_heads": lambda v, s: min(v, 2),
    "linear_head_dim": lambda v, s: min(v, 16),
    "linear_num_key_heads": lambda v, s: min(v, 2),
    "linear_num_value_heads": _linear_value_heads,
    "linear_key_head_dim": lambda v, s: min(v, 16),
    "linear_value_head_dim": _linear_value_dim,
    "query_pre_attn_scalar": _per_head,
    "attention_multiplier": _inverse_per_head,
}
