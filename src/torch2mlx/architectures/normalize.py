"""A checkpoint's config.json in the terms of the mlx-lm port that will read it.

transformers 5 leaves out what equals a default, nests rotary settings in `rope_parameters` (one
set for each layer type where they differ), writes `dtype` for `torch_dtype` and renames keys
through `attribute_map`.  Most ports read the spelling of transformers 4 and take their own
defaults for what they miss, so that such a config gives a wrong model without any error.

The generic rules need no table of models: transformers' own configuration class says what each
key means and what it is when left out, and the port's `ModelArgs` says which keys it reads.
Families with more to say declare it in `architectures.families`.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

from torch2mlx.architectures.registry import Rules, rules_for
from torch2mlx.errors import UnsupportedError

__all__ = ["normalize_config", "port_fields", "reference_config"]

_ROPE_FIELDS = frozenset(
    {
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "rope_local_base_freq",
        "rope_local_theta",
        "partial_rotary_factor",
        "rotary_emb_base",
        "rotary_pct",
    }
)
# The one set of rotary settings that ports with a single `rope_theta` mean comes from the first
# of these layer types; the second kind is what gemma-like ports call local.
_GLOBAL_LAYERS = ("full_attention", "attention")
_LOCAL_LAYERS = ("sliding_attention", "chunked_attention")


def normalize_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config in the port's own terms: the original keys and those that the port reads.

    A key that is there keeps its value, except that None gives way to what transformers takes
    for it.  What the port cannot express is left as it is; nothing is guessed.

    Args:
        config: config.json as saved by any version of transformers, tagged floats decoded.

    Returns:
        A new dict.  Unchanged but for `torch_dtype` where mlx-lm has no port.

    Raises:
        UnsupportedError: keys that the port needs are neither in the config nor known to
            transformers.
    """
    result = deepcopy(dict(config))
    # Of an earlier conversion: its tensors have been renamed already.
    result.pop("source_model_type", None)
    model_type = result.get("model_type")
    if not isinstance(model_type, str):
        return result
    reference = reference_config(result)
    try:
        return _normalize(result, reference, rules_for(model_type))
    except KeyError as missing:
        raise UnsupportedError(
            f"config.json lacks {missing}, which a {model_type!r} model needs; add the key, or "
            "convert a checkpoint whose config.json has it"
        ) from missing
    except (TypeError, ValueError, AttributeError) as error:
        raise UnsupportedError(
            f"config.json has a value of a kind that a {model_type!r} model does not know: "
            f"{error}; compare it with the original model's"
        ) from error


def _normalize(result: dict[str, Any], reference: Any, rules: Rules) -> dict[str, Any]:
    model_type = result["model_type"]
    if rules.reshape:
        result = rules.reshape(result)
        if result["model_type"] != model_type:
            result["source_model_type"] = model_type
    if "dtype" in result:
        result.setdefault("torch_dtype", result["dtype"])
    module = _port_module(result)
    if module is None:
        return result
    args_class = module.ModelArgs
    _fill(result, reference, _fields(args_class))
    _fill_nested(result, reference, module)
    if rules.finish:
        result = rules.finish(result, reference)
    _require(result, args_class, module.__name__)
    return result


def reference_config(config: Mapping[str, Any]) -> Any:
    """Transformers' configuration object for a config.json; None where it has none.

    Built from the dict alone: no remote code, no network, no weights.  None as well where
    transformers refuses the values; the parity check meets the same refusal and reports it.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        return None
    try:
        return CONFIG_MAPPING[model_type].from_dict(deepcopy(dict(config)))
    except Exception:  # configuration classes validate with errors of any type
        return None


def _port_module(config: dict[str, Any]) -> Any:
    """The port's module, or None."""
    from mlx_lm.utils import _get_classes

    try:
        model_class, _ = _get_classes(config=config)
    except (ValueError, SystemExit):  # a port whose own dependency is missing exits on import
        return None
    return inspect.getmodule(model_class)


def port_fields(config: Mapping[str, Any]) -> frozenset[str]:
    """Keys that the port for a normalised config reads, those of nested configs included."""
    module = _port_module(dict(config))
    if module is None:
        return frozenset()
    names = set(_fields(module.ModelArgs))
    for key in [name for name in names if name.endswith("_config")]:
        nested = config.get(key)
        names |= set(_nested_fields(module, nested if isinstance(nested, dict) else {}))
    return frozenset(names)


def _fields(args_class: type) -> dict[str, Any]:
    """Names that a port's arguments take → their annotations."""
    try:
        hints = typing.get_type_hints(args_class)
    except (NameError, TypeError, SyntaxError):
        hints = {}
    return {name: hints.get(name) for name in inspect.signature(args_class).parameters}


def _takes_none(annotation: Any) -> bool:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return type(None) in typing.get_args(annotation)
    return annotation is Any


def _fill(config: dict[str, Any], reference: Any, fields: Mapping[str, Any]) -> None:
    """Give the port the keys that it reads and the config spells otherwise or leaves out."""
    _fill_rope(config, reference, fields)
    if reference is None:
        return
    for name, annotation in fields.items():
        if name in _ROPE_FIELDS or name == "model_type" or config.get(name) is not None:
            continue
        if _is_derived(reference, name):
            continue
        try:
            value = getattr(reference, name)
        except (AttributeError, RuntimeError):  # not there, or not one value for all layers
            continue
        if value is None:
            if _takes_none(annotation):
                config[name] = None
        elif _is_json(value):
            config[name] = list(value) if isinstance(value, tuple) else deepcopy(value)


def _is_derived(reference: Any, name: str) -> bool:
    """True for what transformers computes and would refuse to read from a config.json."""
    attribute = getattr(type(reference), name, None)
    return isinstance(attribute, property) and attribute.fset is None


def _is_json(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_json(v) for v in value)
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_json(v) for k, v in value.items())
    return value is None or isinstance(value, bool | int | float | str)


def _fill_rope(config: dict[str, Any], reference: Any, fields: Mapping[str, Any]) -> None:
    """Spell rotary settings as the port reads them."""
    declared = getattr(reference, "rope_parameters", None) or config.get("rope_parameters")
    if not isinstance(declared, Mapping) or not declared:
        return
    main, local = _by_layer(declared)
    spelled: dict[str, Any] = {}
    if "rope_parameters" in fields:
        spelled["rope_parameters"] = deepcopy(dict(declared))
    if main.get("rope_theta") is not None:
        spelled["rope_theta"] = spelled["rotary_emb_base"] = main["rope_theta"]
    if main.get("partial_rotary_factor") is not None:
        factor = main["partial_rotary_factor"]
        spelled["partial_rotary_factor"] = spelled["rotary_pct"] = factor
    spelled["rope_scaling"] = _scaling(main, config.get("rope_scaling"))
    if local is not None and local.get("rope_theta") is not None:
        spelled["rope_local_base_freq"] = spelled["rope_local_theta"] = local["rope_theta"]
    for name, value in spelled.items():
        if name in fields and (value is not None or config.get(name) is None):
            config[name] = value


def _by_layer(declared: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """The settings of global layers, and those of local ones where they are kept apart."""
    nested = {
        k: v for k, v in declared.items() if isinstance(v, Mapping) and k.endswith("attention")
    }
    if not nested:
        return declared, None
    local = next((nested[k] for k in _LOCAL_LAYERS if k in nested), None)
    main = next((nested[k] for k in _GLOBAL_LAYERS if k in nested), None)
    return main or local or {}, local


def _scaling(main: Mapping[str, Any], legacy: Any) -> dict[str, Any] | None:
    """`rope_scaling` under both spellings of its type; None for plain rotary embeddings."""
    kind = main.get("rope_type") or main.get("type") or "default"
    if kind == "default":
        return None
    own = dict(legacy) if isinstance(legacy, Mapping) else {}
    kept = {k: v for k, v in main.items() if k != "rope_theta" and v is not None}
    return {**kept, "rope_type": kind, "type": kind, **own}


def _fill_nested(config: dict[str, Any], reference: Any, module: Any) -> None:
    """The same for sub-configs, which ports hand on to the arguments of another port."""
    for name in _fields(module.ModelArgs):
        if not name.endswith("_config"):
            continue
        nested = config.get(name)
        inner = _sub_reference(reference, name, nested)
        if inner is None and not isinstance(nested, dict):
            continue
        nested = dict(nested) if isinstance(nested, dict) else {}
        kind = getattr(inner, "model_type", None)
        if kind:
            nested.setdefault("model_type", kind)
        if inner is not reference and hasattr(reference, "tie_word_embeddings"):
            # transformers ties by the outer config, whatever the inner one says.
            nested["tie_word_embeddings"] = reference.tie_word_embeddings
        _fill(nested, inner, _nested_fields(module, nested))
        if rules := nested.get("model_type") and rules_for(nested["model_type"]):
            nested = rules.finish(nested, inner) if rules.finish else nested
        config[name] = nested


def _sub_reference(reference: Any, name: str, nested: Any) -> Any:
    """Transformers' object for a sub-config; its own for a config that a family nested."""
    inner = getattr(reference, name, None)
    if hasattr(inner, "to_dict"):
        return inner
    own = isinstance(nested, dict) and nested.get("model_type")
    return reference if own and own == getattr(reference, "model_type", None) else None


def _nested_fields(module: Any, nested: dict[str, Any]) -> dict[str, Any]:
    """Every key that the port, or a port it builds on, reads in a sub-config."""
    known = [v for v in vars(module).values() if inspect.isclass(v) or inspect.ismodule(v)]
    names = {v.__name__ if inspect.ismodule(v) else v.__module__ for v in known}
    classes = [
        value
        for name in sorted(names)
        if name.startswith("mlx_lm.models.")
        for value in vars(sys.modules[name]).values()
        if inspect.isclass(value) and dataclasses.is_dataclass(value)
        if value is not module.ModelArgs
    ]
    own = _port_module(nested) if isinstance(nested.get("model_type"), str) else None
    if own is not None:
        classes.append(own.ModelArgs)
    return {k: v for c in classes for k, v in _fields(c).items()}


def _require(config: Mapping[str, Any], args_class: type, module: str) -> None:
    parameters = inspect.signature(args_class).parameters.values()
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in config]
    if missing:
        raise UnsupportedError(
            f"config.json lacks {_listed(missing)}, which {module} needs and transformers has no "
            "value for; add the key, or convert a checkpoint whose config.json has it"
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(n) for n in names)
