"""A tiny config with the same flags: the model's structure at a hundredth of its width.

Every flag (biases, activations, norms, tied weights, rope type, soft caps, multipliers, experts
with top-k, low-rank attention, state-space dimensions ...) stays; widths, vocabulary and layer
count shrink.  Windows and length boundaries shrink as well, so that a run of 64 tokens passes
every one of them.  The dict keeps the style it came in (old `rope_scaling` or new
`rope_parameters`, top level or nested), because that style is part of what has to be proven.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch2mlx.verification.depth import thin_config
from torch2mlx.verification.layers import layer_signatures, text_part
from torch2mlx.verification.reference import reference_config
from torch2mlx.verification.sizes import (
    LATENT,
    LONG,
    VOCABULARY,
    Boundary,
    Sizes,
    new_value,
)

__all__ = ["boundaries", "place_special_ids", "shrink_config"]


def shrink_config(config: Mapping[str, Any], max_context: int | None = None) -> dict[str, Any]:
    """A tiny config of the same kind, in the same style.

    Args:
        config: contents of config.json, of any transformers version.
        max_context: boundaries of this many tokens or more are not crossed by a run of
            `sizes.RUN_LENGTH` tokens; None crosses all.

    Raises:
        UnsupportedError: transformers does not know the model type.
    """
    return _shrink(config, max_context)[0]


def boundaries(config: Mapping[str, Any], max_context: int | None = None) -> tuple[Boundary, ...]:
    """The sequence lengths that a run of the shrunk config crosses, shortest first."""
    return tuple(sorted(_shrink(config, max_context)[1], key=lambda b: b.original))


def _shrink(
    config: Mapping[str, Any], max_context: int | None
) -> tuple[dict[str, Any], list[Boundary]]:
    settings = reference_config(config)
    result = copy.deepcopy(dict(config))
    for key in ("quantization_config", "quantization", "auto_map", "dtype", "torch_dtype"):
        result.pop(key, None)
    text: Any = text_part(result)
    text_settings = settings.get_text_config()
    old = text_settings.to_dict()
    sizes = Sizes(old, max_context)
    _shrink_part(text, old, sizes)
    _shrink_rope(text, old, sizes)
    place_special_ids(result, VOCABULARY)
    for key in ("vision_config", "audio_config"):
        nested = getattr(settings, key, None)
        if nested is not None:
            result[key] = {**(result.get(key) or {}), **_tiny_tower(nested.to_dict(), sizes)}
    return _shrink_depth(result), sizes.found


def _shrink_part(raw: dict[str, Any], old: Mapping[str, Any], sizes: Sizes) -> None:
    """Replace the sizes of one dict; a size that only a default gives is written if it changes."""
    for key in [k for k in old if k in raw or not isinstance(old[k], Mapping)]:
        value = raw[key] if key in raw else old[key]
        if isinstance(value, Mapping):
            if key not in ("rope_scaling", "rope_parameters"):
                raw[key] = dict(value)
                _shrink_part(raw[key], raw[key], sizes)
            continue
        new = new_value(key, value, sizes)
        if new is not None and new != value:
            raw[key] = new
    for key in [k for k in raw if k not in old]:
        new = new_value(key, raw[key], sizes)
        if isinstance(raw[key], Mapping) and key.endswith("_config"):
            raw[key] = dict(raw[key])
            _shrink_part(raw[key], raw[key], sizes)
        elif new is not None:
            raw[key] = new


def _shrink_rope(raw: dict[str, Any], old: Mapping[str, Any], sizes: Sizes) -> None:
    """Shrink the tables of rope scaling, and the lengths at which it changes."""
    for key in ("rope_scaling", "rope_parameters"):
        scaling = raw.get(key)
        if not isinstance(scaling, Mapping):
            continue
        raw[key] = scaling = copy.deepcopy(dict(scaling))
        parts = [v for v in scaling.values() if isinstance(v, dict)] or [scaling]
        for part in parts:
            _shrink_rope_part(part, raw, old, sizes)


def _shrink_rope_part(
    part: dict[str, Any], raw: dict[str, Any], old: Mapping[str, Any], sizes: Sizes
) -> None:
    kind = part.get("rope_type", part.get("type"))
    share = part.get("partial_rotary_factor", old.get("partial_rotary_factor")) or 1.0
    half = (LATENT["qk_rope_head_dim"] if sizes.latent else int(sizes.new_head * float(share))) // 2
    for name in ("short_factor", "long_factor"):
        if isinstance(part.get(name), list) and half:
            factors = part[name]
            part[name] = [factors[i * len(factors) // half] for i in range(half)]
    if isinstance(part.get("mrope_section"), list):
        part["mrope_section"] = _apportion(part["mrope_section"], half)
    length = old.get("max_position_embeddings")
    if kind in ("longrope", "su"):
        holder = part if "original_max_position_embeddings" in part else raw
        original = holder.get("original_max_position_embeddings") or old.get(
            "original_max_position_embeddings"
        )
        if original:
            new = sizes.boundary("original_max_position_embeddings", original, LONG, True)
            for place in (part, raw):
                if "original_max_position_embeddings" in place:
                    place["original_max_position_embeddings"] = new
            if "original_max_position_embeddings" not in holder:
                holder["original_max_position_embeddings"] = new
            if length:  # their ratio gives the attention factor
                raw["max_position_embeddings"] = max(1, length * new // original)
    elif kind == "dynamic" and length:
        raw["max_position_embeddings"] = sizes.boundary(
            "max_position_embeddings", length, LONG, True
        )


def _apportion(sections: list[int], total: int) -> list[int]:
    """Integers with the ratios of `sections` and the sum `total`."""
    scale = total / max(1, sum(sections))
    result = [int(n * scale) for n in sections]
    for i in sorted(range(len(result)), key=lambda i: -(sections[i] * scale - result[i])):
        if sum(result) == total:
            break
        result[i] += 1
    return result


def place_special_ids(config: dict[str, Any], vocabulary: int) -> None:
    """Move special token ids beyond a cut vocabulary to its end, distinct ones apart, in place."""
    moved: dict[int, int] = {}

    def place(value: Any) -> Any:
        if isinstance(value, list):
            return [place(v) for v in value]
        if isinstance(value, bool) or not isinstance(value, int) or value < vocabulary:
            return value
        return moved.setdefault(value, vocabulary - 1 - len(moved) % (vocabulary // 4))

    def visit(part: dict[str, Any]) -> None:
        for key, value in part.items():
            if isinstance(value, dict):
                visit(value)
            elif str(key).endswith(("_token_id", "_token_index", "_token_ids")):
                part[key] = place(value)

    visit(config)


def _tiny_tower(tower: Mapping[str, Any], sizes: Sizes) -> dict[str, Any]:
    """Sizes for an image or audio tower, which a run on text passes by."""
    small = {
        "hidden_size": 32,
        "embed_dim": 32,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "num_heads": 2,
        "num_hidden_layers": 1,
        "depth": 1,
        "head_dim": 16,
        "out_hidden_size": sizes.new_hidden,
        "vocab_size": 8,
    }
    return {k: v for k, v in small.items() if isinstance(tower.get(k), int)}


def _shrink_depth(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the shortest run of first layers, at least two, that shows every kind of layer."""
    settings = reference_config(config).get_text_config()
    old = settings.to_dict()
    if old.get("num_kv_shared_layers"):
        # Counted from the end: keep one period of layers with keys of their own, one without.
        kinds = list(old.get("layer_types") or [])
        period = next((i + 1 for i, k in enumerate(kinds) if k == "full_attention"), 2)
        result = thin_config(config, range(min(len(kinds), 2 * period)))
        text: Any = text_part(result)
        text["num_kv_shared_layers"] = min(int(old["num_kv_shared_layers"]), period)
        return result
    signatures = layer_signatures(config)
    kept = len(set(signatures))
    depth = next(n for n in range(1, len(signatures) + 1) if len(set(signatures[:n])) == kept)
    return thin_config(config, range(min(len(signatures), max(2, depth))))
