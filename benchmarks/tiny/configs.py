"""A small config of any model type: its defaults with every size cut, flags as they are."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["EXCEPTIONS", "LEVELS", "VOCABULARY", "tiny_config"]

LEVELS = 4
"""How far sizes are cut: 0 by rules for each key, 1 all widths by 8, 2 by 4, 3 depth alone."""

VOCABULARY = 256
_HIDDEN, _HEADS, _HEAD, _LAYERS, _EXPERTS = 64, 4, 16, 2, 8

_HIDDEN_KEYS = """hidden_size n_embd d_model embed_dim dim hidden_dim projection_dim embedding_size
    word_embed_dim encoder_embed_dim decoder_embed_dim output_dim out_hidden_size mm_hidden_size
    encoder_hidden_size decoder_hidden_size d_embed emb_dim n_embed model_dim feature_size
    projector_hidden_size text_embed_dim vision_embed_dim cross_attention_hidden_size
    proj_hidden_size multimodal_projector_hidden_size output_hidden_size""".split()
_HEAD_KEYS = """num_attention_heads n_head n_heads num_heads encoder_attention_heads
    decoder_attention_heads attention_heads num_attention_head encoder_num_heads
    decoder_num_heads""".split()
_KV_KEYS = """num_key_value_heads num_kv_heads n_head_kv kv_n_heads decoder_num_key_value_heads
    encoder_num_key_value_heads""".split()
_WIDTH_KEYS = """intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff n_inner
    ffn_hidden_size moe_intermediate_size shared_intermediate_size
    shared_expert_intermediate_size d_inner
    dense_intermediate_size intermediate_size_mlp dim_ff mlp_dim ffn_hidden_dim
    expert_ffn_hidden_size moe_shared_expert_intermediate_size feed_forward_size hidden_dim_ff
    dim_feedforward mlp_hidden_size encoder_ffn_size""".split()
_LAYER_KEY = re.compile(
    r"(^|_)(num_hidden_layers|n_layers?|num_layers|depth|encoder_layers|decoder_layers|"
    r"num_encoder_layers|num_decoder_layers|num_block|num_blocks|n_blocks|num_layers_.*)$"
)
_EXPERT_KEYS = """num_experts num_local_experts n_routed_experts moe_num_experts num_routed_experts
    n_experts""".split()
_TOP_KEYS = """num_experts_per_tok num_experts_per_token moe_k moe_topk moe_top_k top_k_experts
    num_selected_experts moe_num_experts_per_tok""".split()
_SMALL = {  # key → largest value
    "mamba_d_state": 16, "ssm_state_size": 16, "state_size": 16, "chunk_size": 16,
    "mamba_chunk_size": 16, "kv_lora_rank": 32, "q_lora_rank": 24, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8, "v_head_dim": 16, "qk_head_dim": 24, "n_group": 2, "topk_group": 1,
    "first_k_dense_replace": 1, "head_dim": _HEAD, "global_head_dim": 32, "d_kv": 16,
    "attention_head_dim": _HEAD, "attention_head_size": _HEAD, "head_size": _HEAD,
    "v_head_size": _HEAD, "sliding_window": 9, "window_size_right": 8, "attention_chunk_size": 16,
    "num_queries": 8, "num_query_tokens": 8, "num_channels_latents": 16, "codebook_size": 64,
    "codebook_dim": 16, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
    "mamba_d_head": 16, "mamba_head_dim": 16, "mamba_d_ssm": 128, "n_groups": 1,
    "mamba_n_groups": 1, "index_n_heads": 16, "index_head_dim": 16, "index_topk": 12,
    "num_latents": 16, "mm_tokens_per_image": 4, "num_soft_tokens": 4,
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "full_attention_interval": 2, "sliding_window_pattern": 2,
    "attn_layer_period": 2, "expert_layer_period": 2, "attn_layer_offset": 1,
    "expert_layer_offset": 1, "layer_group_size": 2, "max_window_layers": 1,
    "max_source_positions": 64, "max_target_positions": 128, "bottleneck_features": 32,
    "fusion_hidden_size": 32, "decoder_hidden_dim": 32, "num_semantic_classes": 8,
    "num_buckets": 32, "num_mel_filters": 80, "num_points": 4, "num_denoising": 0,
    "num_feature_levels": 4, "perceiver_depth": 1, "resampler_depth": 1, "mtp_num_layers": 0,
}  # fmt: skip
# Sizes that some configs leave open and their models need.
_UNSET = {"head_dim": _HEAD, "num_key_value_heads": _HEADS, "num_experts_per_tok": 2}
_POSITIONS = """max_position_embeddings n_positions max_seq_len max_sequence_length n_ctx
    max_seq_length seq_length max_position""".split()
_SQUARES = re.compile(r"(^|_)(image_size|img_size|input_size|crop_size|pretrain_image_size)$")
_KEPT = re.compile(
    r"(_token_id|_token_index|_token_ids|_id|_rate|_hop|_stride|patch_size|kernel|dropout|groups|"
    r"theta|scale|factor|base|seed|window|positions?|_length|max_len|image_size|img_size|"
    r"mel_bins|num_labels|dtype|steps|fft|sampling|channels_in|tile)"
)

# Inner width of state-space layers = hidden size × expansion = heads × size of a head.
_INNER = (
    ("intermediate_size", "num_heads", "head_dim", "expand"),
    ("mamba_intermediate", "mamba_n_heads", "mamba_d_head", "mamba_expand"),
    ("mamba_intermediate", "mamba_num_heads", "mamba_head_dim", "mamba_expand"),
    ("mamba_intermediate", "mamba_num_heads", "mamba_head_dim", "expand"),
)

Config = dict[str, Any]


def tiny_config(model_type: str, level: int = 0) -> Any:
    """The config object of a type with its sizes cut.

    Args:
        model_type: key of CONFIG_MAPPING.
        level: below LEVELS.

    Raises:
        Exception: whatever the configuration class has against it.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    exception = EXCEPTIONS.get(model_type, {})
    defaults = exception(kind) if callable(exception) else kind()
    raw = copy.deepcopy(defaults.to_dict())
    for key in ("_name_or_path", "transformers_version", "architectures", "dtype"):
        raw.pop(key, None)
    small = _cut(raw, level)
    if not callable(exception):
        _override(small, exception)
    _place_ids(small)
    small.pop("model_type", None)
    config = kind.from_dict(small)
    for part in _parts(config):
        if hasattr(part, "use_cache"):
            part.use_cache = False
    return config


def _parts(config: Any) -> list[Any]:
    found = [config]
    for name in getattr(config, "sub_configs", {}) or {}:
        part = getattr(config, name, None)
        if part is not None:
            found += _parts(part)
    return found


def _override(raw: Config, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(raw.get(key), dict):
            _override(raw[key], value)
        else:
            raw[key] = copy.deepcopy(value)


def _cut(raw: Config, level: int) -> Config:
    """Every size of one dict and of those inside it."""
    result: Config = {}
    depth, kept = _depth(raw)
    widths: Callable[[str, Any], Any] = (
        (lambda k, v: _by_rule(k, v, raw)) if level == 0 else (lambda k, v: _by_factor(k, v, level))
    )
    for key, value in raw.items():
        if key in ("id2label", "label2id", "stage_names"):
            continue
        if not isinstance(key, str):
            result[key] = value
            continue
        if key == "per_layer_config" and isinstance(value, dict):
            layers = {k: v for k, v in value.items() if int(k) < kept}
            result[key] = {
                k: _cut(v, level) if isinstance(v, dict) else v for k, v in layers.items()
            }
            continue
        if isinstance(value, dict) and not key.startswith(("rope_", "task_specific")):
            result[key] = _cut(value, level)
            rope = result[key].get("rope_parameters")
            flat = isinstance(rope, dict) and not any(isinstance(v, dict) for v in rope.values())
            if "vision_config" in raw and flat:
                rope.setdefault("mrope_section", [16, 24, 24])
                _cut_rope(result[key])
        elif isinstance(value, list) and value and depth and len(value) == depth:
            result[key] = [widths(key, v) for v in value[:kept]]
        elif isinstance(value, str) and depth and len(value) == depth and "layer" in key:
            result[key] = value[:kept]
        elif isinstance(value, bool | str) or (value is None and key not in _UNSET):
            result[key] = value
        elif isinstance(value, int) and _LAYER_KEY.search(key):
            result[key] = min(value, kept if value == depth else _LAYERS)
        elif key.endswith("vocab_size") and isinstance(value, int) and value > VOCABULARY:
            result[key] = VOCABULARY
        elif isinstance(value, int) and key in _POSITIONS:
            result[key] = min(value, 256) if value > 0 else value
        elif isinstance(value, int) and _SQUARES.search(key):
            result[key] = _square(value, raw)
        elif isinstance(value, list) and _SQUARES.search(key):
            result[key] = [_square(v, raw) if isinstance(v, int) else v for v in value]
        elif isinstance(value, list) and key in ("depths", "layer_depths", "num_blocks", "layers"):
            result[key] = [min(v, 2) if isinstance(v, int) else v for v in value]
        else:
            result[key] = widths(key, value)
    if raw.get("out_features") and depth and not isinstance(raw.get("depths"), list):
        number = min(len(raw["out_features"]), kept)
        result["out_features"] = None
        result["out_indices"] = list(range(kept - number + 1, kept + 1))
    _cut_rope(result)
    for inner, heads, head, expand in _INNER:
        if isinstance(result.get(heads), int) and isinstance(result.get(expand), int | float):
            width = int(result.get("hidden_size", _HIDDEN) * result[expand])
            if isinstance(result.get(head), int) and width % result[head] == 0:
                result[heads] = width // result[head]
            if inner in result:
                result[inner] = width
    return result


def _depth(raw: Config) -> tuple[int, int]:
    """Number of layers, and of the first ones that show every kind of layer (at most 8)."""
    depth = next(
        (
            raw[k]
            for k in ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth")
            if isinstance(raw.get(k), int)
        ),
        0,
    )
    if isinstance(raw.get("depths"), list) and len(raw["depths"]) == depth:
        return depth, depth  # stages of a hierarchy
    kept = max(_LAYERS, len(raw.get("out_features") or []))
    for key, value in raw.items():
        whole = isinstance(value, list | str) and len(value) == depth and depth > 0
        if whole and ("type" in key or "pattern" in key or "layer" in key or key == "is_sparse"):
            kinds = [str(v) for v in value]
            prefix = next(n for n in range(depth + 1) if set(kinds[:n]) == set(kinds))
            kept = max(kept, min(prefix, 8))
    return depth, min(kept, depth) if depth else kept


def _square(value: int, raw: Config) -> int:
    if isinstance(raw.get("window_size"), int) and isinstance(raw.get("depths"), list):
        return min(value, 224)  # windows must fit the coarsest grid
    patch = raw.get("patch_size")
    patch = patch if isinstance(patch, int) and patch >= 8 else 16
    return min(value, 4 * patch)


def _by_rule(key: str, value: Any, raw: Config) -> Any:
    if key == "head_dim" and raw.get("qk_rope_head_dim"):
        return value and _SMALL["qk_rope_head_dim"]  # of the part that is rotated
    if value is None and key in _UNSET:
        return _UNSET[key]
    if isinstance(value, list):
        return _scaled_list(key, value)
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    listed = any(
        isinstance(raw.get(k), list) for k in ("num_heads", "depths", "num_attention_heads")
    )
    if key in _HIDDEN_KEYS and value > _HIDDEN:
        return value // 4 if listed else _HIDDEN
    if key in _HEAD_KEYS and value > _HEADS:
        return _HEADS
    if key in _KV_KEYS and value > 2:
        heads = next((raw[k] for k in _HEAD_KEYS if isinstance(raw.get(k), int)), None)
        return _HEADS if value == heads else 2
    if key in _WIDTH_KEYS and value > 96:
        return 96
    if key in _EXPERT_KEYS:
        return min(value, _EXPERTS)
    if key in _TOP_KEYS:
        return min(value, 2)
    if key in _SMALL:
        return min(value, _SMALL[key])
    if value >= 512 and value % 8 == 0 and not _KEPT.search(key):
        return 64
    return value


def _scaled_list(key: str, value: list[Any]) -> list[Any]:
    """Widths of a hierarchy keep their ratios."""
    numbers = all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    if not numbers or not value or _KEPT.search(key) or max(value) < 64:
        return value
    for factor in (8, 4, 2):
        if all(v % (2 * factor) == 0 and v // factor >= 8 for v in value):
            return [v // factor for v in value]
    return value


def _by_factor(key: str, value: Any, level: int) -> Any:
    factor = {1: 8, 2: 4, 3: 1}[level]
    if isinstance(value, list):
        return [_by_factor(key, v, level) for v in value]
    if isinstance(value, bool) or not isinstance(value, int) or _KEPT.search(key):
        return value
    if key in _EXPERT_KEYS:
        return min(value, _EXPERTS)
    if key in _TOP_KEYS:
        return min(value, 2)
    return value // factor if value >= 64 and value % factor == 0 else value


def _cut_rope(raw: Config) -> None:
    """Sections and factors of rotary embeddings, whose number is that of the pairs of a head."""
    for key in ("rope_parameters", "rope_scaling"):
        parts = raw.get(key)
        if not isinstance(parts, dict):
            continue
        heads = next((raw[k] for k in _HEAD_KEYS if isinstance(raw.get(k), int)), _HEADS)
        hidden = raw.get("hidden_size") or _HIDDEN
        head = raw.get("head_dim") or hidden // heads
        for part in [v for v in parts.values() if isinstance(v, dict)] or [parts]:
            if "rope_theta" in part and part["rope_theta"] is None:
                part["rope_theta"] = 10000.0
            half = int(head * (part.get("partial_rotary_factor") or 1.0)) // 2
            section = part.get("mrope_section")
            if isinstance(section, list) and sum(section) != half and len(section) == 3:
                third = half // 3
                part["mrope_section"] = [half - 2 * third, third, third]
            for name in ("short_factor", "long_factor"):
                if isinstance(part.get(name), list):
                    part[name] = part[name][:half]


def _place_ids(config: Config) -> None:
    """Special tokens beyond the cut vocabularies move to its end, distinct ones apart."""
    moved: dict[int, int] = {}

    def place(value: Any) -> Any:
        if isinstance(value, list):
            return [place(v) for v in value]
        if isinstance(value, bool) or not isinstance(value, int) or value < VOCABULARY:
            return value
        return moved.setdefault(value, VOCABULARY - 1 - len(moved) % (VOCABULARY // 2))

    def visit(part: Config) -> None:
        for key, value in part.items():
            if isinstance(value, dict):
                visit(value)
            elif str(key).endswith(("token_id", "token_index", "token_ids", "tokens_id", "_idx")):
                part[key] = place(value)

    visit(config)


def _pair(encoder: str, decoder: str) -> Callable[[Any], Any]:
    """A composite of two tiny models."""

    def make(kind: Any) -> Any:
        first, second = tiny_config(encoder), tiny_config(decoder)
        return kind.from_encoder_decoder_configs(first, second)

    return make


def _with(**values: Any) -> Callable[[Any], Any]:
    """Defaults with what the class leaves open."""
    return lambda kind: kind(**values)


_NARROW = {"width_coefficient": 0.25, "depth_coefficient": 0.5, "hidden_dim": 320}
"""Of EfficientNets: 1280 channels by the width coefficient are the last ones."""

_POOLED = {
    "index_topk": 16,
    "index_kpool": 4,
    "hc_sinkhorn_iters": 4,
    "linear_head_dim": 16,
    "linear_num_heads": 4,
}

# What rules do not find: values over the cut config, or a function from the class to its defaults.
_TABLE: tuple[tuple[str, Any], ...] = (
    ("encoder-decoder", _pair("bert", "bert")),
    ("vision-encoder-decoder", _pair("vit", "gpt2")),
    ("speech-encoder-decoder", _pair("wav2vec2", "bert")),
    ("autoformer informer time_series_transformer", _with(prediction_length=8)),
    (
        "llava_next llava_next_video llava_onevision",
        {"image_grid_pinpoints": [[112, 112]], "vision_config": {"image_size": 56}},
    ),
    (
        "granite_speech granite_speech_plus",
        {"encoder_config": {"context_size": 16, "max_pos_emb": 64}},
    ),
    ("glm4v_text glm4v_moe_text glm_image_text", {"rope_parameters": {"mrope_section": [2, 1, 1]}}),
    ("xlm flaubert", {"n_words": 256}),
    ("aria", {"projector_patch_to_query_dict": {16: 8}}),
    ("dots1", {"n_routed_experts": 8, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}),
    ("lfm2_moe", {"layer_types": ["conv", "full_attention"]}),
    ("esm", {"vocab_size": 64, "pad_token_id": 1, "mask_token_id": 32}),
    ("qwen4_exp_text", {"token_budget": 16, "compress_ratio": 4}),
    ("gemma3n_text", {"num_kv_shared_layers": 0}),
    ("gemma3n", {"text_config": {"num_kv_shared_layers": 0}}),
    ("glm5_next_text", _POOLED),
    ("glm5_next", {"text_config": _POOLED}),
    ("bailing_hybrid", {"n_group": 1, "topk_group": 1}),
    ("step3p7", {"text_config": {"sliding_window": 9}}),
    ("blip-2 instructblip instructblipvideo", {"image_token_index": 250}),
    ("sam sam_hq", {"prompt_encoder_config": {"image_size": 64, "image_embedding_size": 4}}),
    ("depth_anything prompt_depth_anything chmv2", {"reassemble_hidden_size": 64}),
    (
        "llama4",
        {
            "vision_config": {
                "intermediate_size": 256,
                "projector_input_dim": 64,
                "projector_output_dim": 64,
                "vision_output_dim": 64,
            }
        },
    ),
    # The originals keep 300 of 8400 places; of 336 the same share, whose scores lie apart.
    (
        "rt_detr rt_detr_v2 d_fine deimv2 pp_doclayout_v3 pp_doclayout_v4",
        {"num_queries": 12},
    ),
    ("voxtral", {"audio_config": {"intermediate_size": 256}}),
    ("timesfm2_5", {"context_length": 256}),  # one step for each of 512 patches otherwise
    ("swin2sr", {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 2]}),
    (
        "mimi",
        {
            "num_filters": 8,
            "upsample_groups": 64,
            "vector_quantization_hidden_dimension": 32,
            "codebook_dim": 32,
            "num_quantizers": 4,
        },
    ),
    ("efficientnet", _NARROW),
    ("align", {"projection_dim": 40, "vision_config": {**_NARROW, "initializer_range": 0.3}}),
    ("xmod", {"default_language": "en_XX"}),
    ("timm_backbone", _with(backbone="resnet18", use_pretrained_backbone=False)),
)
EXCEPTIONS: dict[str, Any] = {name: value for names, value in _TABLE for name in names.split()}
