"""Where a port is known to compute something else than the original, and from when on.

The parity check finds such differences as a number; these sentences say what they are.  Each
was met by comparing mlx-lm 0.32 with transformers 5 on tiny random models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch2mlx.architectures.catalog import port_name, port_settings
from torch2mlx.architectures.normalize import normalize_config, port_fields, reference_config
from torch2mlx.errors import UnsupportedError

__all__ = ["FLOAT16_OVERFLOWS", "known_limits", "stated_limits"]

FLOAT16_OVERFLOWS = ("gemma", "t5", "qwen2_vl")
"""Beginnings of model types whose activations leave float16's range."""

_Limit = Callable[[Any, Mapping[str, Any], frozenset[str]], str | None]
_WINDOW_KEYS = frozenset(
    {"sliding_window", "attention_window_size", "sliding_window_size", "window_size"}
)


def known_limits(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Known differences between port and original for this config.

    Args:
        config: as the checkpoint has it.

    Returns:
        A sentence for each difference; nothing where no port or no configuration class of
        transformers knows the model type.
    """
    reference = reference_config(config)
    if reference is None:
        return ()
    try:
        normalised = normalize_config(config)
    except UnsupportedError:
        return ()
    text = reference.get_text_config(decoder=True)
    part = normalised.get("text_config")
    values = part if isinstance(part, dict) and part.get("num_hidden_layers") else normalised
    fields = port_fields(normalised)
    if not fields:
        return ()
    found = (limit(text, values, fields) for limit in (*_GENERAL, *_OWN.get(text.model_type, ())))
    return tuple(sentence for sentence in found if sentence)


def stated_limits(config: Mapping[str, Any], max_context: int | None = None) -> tuple[str, ...]:
    """Those of `known_limits` that config.json itself shows.

    Loads no library, so it is quick, but sees no value that the config leaves to a default.

    Args:
        config: as the checkpoint has it.
        max_context: tokens of the longest text that counts; as many as the config allows if None.
    """
    nested = config.get("text_config")
    values = {**config, **nested} if isinstance(nested, Mapping) else {**config}
    if max_context is not None:
        values["max_position_embeddings"] = max_context
    stated = _Stated(values)
    port = port_name(config)
    if port is None:
        return ()
    fields = port_settings(port)
    if port != "llama":  # others get a kind for each layer from transformers where it is left out
        fields -= {"layer_types"}
    kind = str(stated.values.get("model_type"))
    found = []
    for limit in (*_GENERAL, *_OWN.get(kind, ())):
        try:
            found.append(limit(stated, stated.values, fields))
        except (AttributeError, TypeError, ValueError):  # not stated, or no such value
            continue
    return tuple(sentence for sentence in found if sentence)


class _Stated:
    """The keys of a config.json as attributes, with the two that transformers reads otherwise."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def __getattr__(self, name: str) -> Any:
        try:
            return self.values[name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def rope_parameters(self) -> Mapping[str, Any]:
        values = self.values
        rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
        rope = rope if isinstance(rope, Mapping) else {}
        inner = rope.get("full_attention")
        rope = inner if isinstance(inner, Mapping) else rope
        kind = rope.get("rope_type") or rope.get("type")
        original = values.get("original_max_position_embeddings")
        return {
            "original_max_position_embeddings": original,
            **rope,
            "rope_type": "longrope" if kind == "su" else kind,
        }

    @property
    def sliding_window(self) -> int | None:
        values = self.values
        if str(values.get("model_type")).startswith(("qwen2", "qwen3")):
            layers, full = values.get("num_hidden_layers"), values.get("max_window_layers")
            no_layer = isinstance(layers, int) and isinstance(full, int) and full >= layers
            if not values.get("use_sliding_window") or no_layer:
                return None
        window: Any = values.get("sliding_window")
        return window if isinstance(window, int) else None


def _rope(reference: Any) -> Mapping[str, Any]:
    rope = getattr(reference, "rope_parameters", None) or {}
    inner = rope.get("full_attention") if isinstance(rope, Mapping) else None
    return inner if isinstance(inner, Mapping) else rope


def _window(reference: Any, config: Mapping[str, Any], fields: frozenset[str]) -> str | None:
    window = getattr(reference, "sliding_window", None)
    kinds = getattr(reference, "layer_types", None)
    if not isinstance(window, int) or window >= reference.max_position_embeddings:
        return None
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    if fields & _WINDOW_KEYS and (config.get("layer_types") or "layer_types" not in fields):
        return None
    return (
        f"the port ignores the sliding window of {window} tokens: up to that length the result "
        "is right, beyond it tokens attend to more than in the original"
    )


def _longrope(reference: Any, config: Mapping[str, Any], fields: frozenset[str]) -> str | None:
    rope = _rope(reference)
    if rope.get("rope_type") != "longrope" or rope.get("short_factor") == rope.get("long_factor"):
        return None
    return (
        "the port applies the long rotary factors at every length, the original the short ones "
        f"up to {rope.get('original_max_position_embeddings')} tokens: shorter texts differ"
    )


def _yarn(reference: Any, config: Mapping[str, Any], fields: frozenset[str]) -> str | None:
    rope = _rope(reference)
    if rope.get("rope_type") != "yarn" or rope.get("truncate", True):
        return None
    return (
        "the port rounds the ends of the YaRN ramp to whole dimensions, the original "
        "(truncate: false) does not"
    )


def _always(sentence: str) -> _Limit:
    return lambda reference, config, fields: sentence


def _several_experts(
    reference: Any, config: Mapping[str, Any], fields: frozenset[str]
) -> str | None:
    if reference.num_experts_per_tok == 1:
        return None
    return "the port rescales the weights of the chosen experts to a sum of one, the original not"


def _norm_groups(reference: Any, config: Mapping[str, Any], fields: frozenset[str]) -> str | None:
    if reference.n_groups == 1:
        return None
    return (
        "the port normalises the whole width at once, the original each of "
        f"{reference.n_groups} groups (n_groups)"
    )


def _epsilon(reference: Any, config: Mapping[str, Any], fields: frozenset[str]) -> str | None:
    if reference.rms_norm_eps == 1e-5:
        return None
    return (
        f"the port's norms add 1e-05 to the variance, the original {reference.rms_norm_eps:.0e} "
        "(rms_norm_eps): small activations differ"
    )


def _gelu(key: str, port: str) -> _Limit:
    """The port computes `port` whatever the config's `key` asks for."""

    def limit(reference: Any, config: Mapping[str, Any], fields: frozenset[str]) -> str | None:
        name = getattr(reference, key)
        # transformers reads gemma's old "gelu" as the tanh form, as it was trained.
        tanh = name in _TANH_GELU or (reference.model_type == "gemma" and name == "gelu")
        if "gelu" not in name or tanh == (port == "tanh"):
            return None
        own = "erf" if port == "tanh" else "tanh"
        return f"the port computes the {port} form of GELU, the original the {own} form ({key})"

    return limit


_TANH_GELU = frozenset({"gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_python_tanh"})

_GENERAL: tuple[_Limit, ...] = (_window, _longrope, _yarn)
_OWN: Mapping[str, tuple[_Limit, ...]] = {
    "bitnet": (
        _always("the port takes packed ternary weights only, as the published checkpoint has"),
    ),
    "ernie4_5_moe": (
        _always("the port leaves out the bias by which the original selects experts"),
    ),
    "gemma": (_gelu("hidden_act", "erf"),),
    "gpt_bigcode": (_gelu("activation_function", "erf"),),
    "gpt_neox": (_gelu("hidden_act", "tanh"),),
    "starcoder2": (_gelu("hidden_act", "erf"),),
    "nanochat": (_epsilon,),
    "recurrent_gemma": (_epsilon,),
    "jamba": (_several_experts,),
    "mamba2": (_norm_groups,),
    "phimoe": (
        _always("the port selects experts by a plain softmax, the original by sparse mixing"),
    ),
}
