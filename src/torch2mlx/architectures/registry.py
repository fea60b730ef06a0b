"""Declared rules for model families, one file of `families/` each.

A family module declares `RULES`, a tuple of `Rules`, one a model type.  Everything that a port's
own loader and the generic config normalising get right needs no entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch2mlx.errors import PlanError
from torch2mlx.planning.expressions import Expr

__all__ = ["Rules", "rename_state", "rules_for"]

Config = dict[str, Any]
Rename = Callable[[Mapping[str, Expr], Mapping[str, Any]], dict[str, Expr]]
Dropped = Callable[[str, Mapping[str, Any]], str | None]


@dataclass(frozen=True)
class Rules:
    """What one model type needs beyond the generic rules.

    Attributes:
        model_type: as config.json says it.
        reshape: config as saved → config in the shape that the port expects (another port's
            model type, keys nested or flattened).  Runs before defaults are filled in.
        finish: config with every generic key filled in → the port's own terms; its second
            argument is the configuration object of transformers, or None.
        rename: checkpoint tensors → tensors under the names and shapes that the port's own
            `sanitize` expects; its second argument is the normalised config.
        dropped: name of a checkpoint's tensor that reaches no parameter → why the port may leave
            it out, or None; its second argument is the normalised config, or the nested one of
            this model type.  Reasons that hold for every family are in `architectures.drops`.
    """

    model_type: str
    reshape: Callable[[Config], Config] | None = None
    finish: Callable[[Config, Any], Config] | None = None
    rename: Rename | None = None
    dropped: Dropped | None = None


@cache
def _registry() -> dict[str, Rules]:
    from importlib import import_module
    from pkgutil import iter_modules

    from torch2mlx.architectures import families

    found: dict[str, Rules] = {}
    for module in iter_modules(families.__path__):
        for rules in import_module(f"{families.__name__}.{module.name}").RULES:
            if rules.model_type in found:
                raise ValueError(f"two families declare rules for {rules.model_type!r}")
            found[rules.model_type] = rules
    return found


def rules_for(model_type: str) -> Rules:
    """The declared rules of a model type; empty rules where none are declared."""
    return _registry().get(model_type) or Rules(model_type)


def rename_state(state: Mapping[str, Expr], config: Mapping[str, Any]) -> dict[str, Expr]:
    """Checkpoint tensors under the names and shapes that the port's own loader expects.

    Args:
        state: tensors under their Hugging Face names.
        config: the normalised config.

    Raises:
        PlanError: a tensor that the family's rules build on is missing.
    """
    source_type = _source_type(config)
    rename = rules_for(source_type).rename
    if rename is None:
        return dict(state)
    try:
        return rename(state, config)
    except KeyError as missing:
        raise PlanError(
            f"the checkpoint lacks {missing}, which every {source_type!r} model has; it is "
            "incomplete, or of another model than its config.json says"
        ) from missing


def _source_type(config: Mapping[str, Any]) -> str:
    # A family that writes another port's model type keeps its own under this key.
    return str(config.get("source_model_type") or config.get("model_type"))
