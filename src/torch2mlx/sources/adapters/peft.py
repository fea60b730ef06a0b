"""Adapters as PEFT saves them: LoRA, rank-stabilised LoRA and DoRA on linear layers and embeddings.

Names are `base_model.model.` and the module's path, then `lora_A.weight` [rank, in],
`lora_B.weight` [out, rank], `lora_embedding_A`, `lora_embedding_B`, `lora_magnitude_vector`; other
names under that prefix are tensors that were trained whole (`modules_to_save`, `bias`).
(https://huggingface.co/docs/peft/developer_guides/checkpoint)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from math import sqrt
from typing import Any

from torch2mlx.errors import SourceError, UnsupportedError
from torch2mlx.planning.expressions import Expr, Transpose
from torch2mlx.sources.adapters.merging import LowRank
from torch2mlx.sources.adapters.reading import Changes, Stored
from torch2mlx.sources.foreign import matches

__all__ = ["read_peft"]

_PREFIX = "base_model.model."
_PARTS = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|"
    r"lora_magnitude_vector)(?:\.default)?(?:\.(?P<leaf>weight|bias))?"
)
# Ways to begin that leave the base as it is, or that PEFT itself does not repeat when it loads.
_PLAIN_STARTS = ("gaussian", "orthogonal", "eva", "lora_ga")
# Settings under which a merged weight is not base + scale * B @ A.
_OTHER = {
    "layer_replication": "layers that are repeated",
    "alora_invocation_tokens": "an adapter that is switched on by tokens",
    "arrow_config": "a router between adapters",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "velora_config": "VeLoRA",
    "target_parameters": "parameters of fused experts",
    "trainable_token_indices": "single rows of the embedding",
}


def read_peft(config: Mapping[str, Any], tensors: Stored, base: Mapping[str, Expr]) -> Changes:
    """What a PEFT adapter changes.

    Args:
        config: adapter_config.json.
        tensors: of the adapter, by their own names.
        base: the state that it was trained on.

    Raises:
        SourceError: the config lacks rank or alpha.
        UnsupportedError: another method than LoRA or DoRA, or one of its variants.
    """
    _require_lora(config)
    changes = Changes()
    modules: dict[str, dict[str, Expr]] = {}
    for name, expr in tensors.items():
        if not name.startswith(_PREFIX):
            changes.problems.append(f"{name}: its name does not begin with {_PREFIX}")
            continue
        path = name.removeprefix(_PREFIX)
        match = _PARTS.fullmatch(path)
        if match is None:
            target = path.replace(".modules_to_save.default.", ".").replace(".base_layer.", ".")
            _replace(changes, target, expr, base)
            continue
        part = match["part"] + (".bias" if match["leaf"] == "bias" else "")
        modules.setdefault(match["module"], {})[part] = expr
    for module, parts in modules.items():
        _low_rank(changes, module, parts, config, base)
    return changes


def _require_lora(config: Mapping[str, Any]) -> None:
    method = config.get("peft_type")
    if method != "LORA":
        raise UnsupportedError(
            f"adapter_config.json: peft_type {method!r}; LoRA and DoRA are merged, for another "
            "method merge with PEFT (merge_and_unload, then save_pretrained)"
        )
    begun = config.get("init_lora_weights")
    if isinstance(begun, str) and begun not in _PLAIN_STARTS:
        raise UnsupportedError(
            f"adapter_config.json: init_lora_weights {begun!r}: such a training also changes the "
            "base's weights, which the adapter does not hold; merge with PEFT (merge_and_unload, "
            "then save_pretrained), or save it with path_initial_model_for_weight_conversion"
        )
    for key, words in _OTHER.items():
        if config.get(key):
            raise UnsupportedError(
                f"adapter_config.json: {key}: {words}: merge with PEFT (merge_and_unload, then "
                "save_pretrained) and give that folder"
            )
    if not isinstance(config.get("r"), int) or not isinstance(
        config.get("lora_alpha"), int | float
    ):
        raise SourceError(
            f"adapter_config.json: expected numbers r and lora_alpha, found {config.get('r')!r} "
            f"and {config.get('lora_alpha')!r}"
        )


def _replace(changes: Changes, name: str, expr: Expr, base: Mapping[str, Expr]) -> None:
    old = base.get(name)
    if old is None:
        changes.problems.append(_unknown(name, base))
    elif old.shape != expr.shape:
        changes.problems.append(
            f"{name}: the adapter brings {list(expr.shape)}, the base has {list(old.shape)}"
        )
    else:
        changes.replaced[name] = expr


def _low_rank(
    changes: Changes,
    module: str,
    parts: Mapping[str, Expr],
    config: Mapping[str, Any],
    base: Mapping[str, Expr],
) -> None:
    name = f"{module}.weight"
    old = base.get(name)
    if old is None:
        changes.problems.append(_unknown(name, base))
        return
    embedding = "lora_embedding_A" in parts
    a, b = (parts.get(f"lora_{'embedding_' if embedding else ''}{x}") for x in "AB")
    magnitude = parts.get("lora_magnitude_vector")
    if a is None or b is None:
        changes.problems.append(f"{module}: one of the two matrices is missing")
        return
    if len(a.shape) != 2 or len(b.shape) != 2 or len(old.shape) != 2:
        changes.problems.append(f"{module}: no matrix; convolutions must be merged with PEFT")
        return
    rank = _by_pattern(config.get("rank_pattern"), module, config["r"])
    if a.shape[0] != rank or b.shape[1] != rank:
        changes.problems.append(
            f"{module}: rank {rank} in adapter_config.json, {a.shape[0]} and {b.shape[1]} in its "
            f"matrices {list(a.shape)} and {list(b.shape)}"
        )
        return
    flipped = embedding or bool(config.get("fan_in_fan_out"))
    shape = (a.shape[1], b.shape[0]) if flipped else (b.shape[0], a.shape[1])
    if old.shape != shape:
        changes.problems.append(
            f"{name}: the adapter is for {list(shape)}, the base has {list(old.shape)}"
        )
        return
    if bool(config.get("use_dora")) != (magnitude is not None):
        found = "has none" if magnitude is None else "has one"
        changes.problems.append(
            f"{module}: use_dora is {bool(config.get('use_dora'))}, but the adapter {found} "
            "(lora_magnitude_vector)"
        )
        return
    if magnitude is not None and (flipped or magnitude.shape != shape[:1]):
        changes.problems.append(
            f"{module}: DoRA magnitudes {list(magnitude.shape)} for a weight {list(shape)} stored "
            "by columns or of another size; merge with PEFT"
        )
        return
    alpha = _by_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    scale = alpha / (sqrt(rank) if config.get("use_rslora") else rank)
    left, right = (Transpose(a, (1, 0)), Transpose(b, (1, 0))) if flipped else (b, a)
    changes.low_rank[name] = LowRank(left, right, scale, magnitude)
    bias = parts.get("lora_B.bias")
    if bias is not None and _fits_bias(changes, module, bias, base):
        changes.added[f"{module}.bias"] = (bias, scale)


def _fits_bias(changes: Changes, module: str, bias: Expr, base: Mapping[str, Expr]) -> bool:
    old = base.get(f"{module}.bias")
    if old is not None and old.shape == bias.shape:
        return True
    changes.problems.append(f"{module}.bias: the adapter adds to it, but the base has none such")
    return False


def _by_pattern(patterns: Any, module: str, default: Any) -> Any:
    """The entry whose key, a regular expression, fits the end of a path as PEFT tells it."""
    for key, value in (patterns or {}).items():
        if matches(rf"(.*\.)?({key})$", module, "adapter_config.json"):
            return value
    return default


def _unknown(name: str, base: Mapping[str, Expr]) -> str:
    close = get_close_matches(name, list(base), n=1, cutoff=0.5)
    hint = f" (the nearest name is {close[0]!r})" if close else ""
    return f"{name}: the adapter changes it, but the base has no such tensor{hint}"
