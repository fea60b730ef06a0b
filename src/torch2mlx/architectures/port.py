"""Hand-written ports of mlx-lm as conversion targets, known from the config alone.

MLX arrays are lazy, so a port of any size is instantiated to learn its parameters without
allocating one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from importlib.metadata import version
from typing import Any

from torch2mlx.architectures.bounds import check_sizes
from torch2mlx.architectures.catalog import ENDS_PROGRAM, available_ports, similar_ports
from torch2mlx.architectures.drops import drop_reason
from torch2mlx.architectures.tracing import trace_call
from torch2mlx.dtypes import DTYPES
from torch2mlx.errors import PlanError, UnsupportedError
from torch2mlx.planning.expressions import Expr, sources_of
from torch2mlx.planning.functions import cast
from torch2mlx.sources.text_model import body_name

__all__ = ["MODEL_FILE", "Port", "PortMapping", "Target", "load_port", "plain_port"]

MODEL_FILE = "model.py"
"""What `model_file` in config.json says where the model was generated; mlx-lm runs that file."""


@dataclass(frozen=True)
class Target:
    """One parameter of the MLX model.

    Attributes:
        name: dotted path, as in the written file.
        shape: of the unquantized parameter.
        module: path of the module that owns it.
        kind: MLX class name of that module ("Linear", "Embedding", "SwitchLinear" ...).
        quantizable: True for the weight of a module with `to_quantized`.
    """

    name: str
    shape: tuple[int, ...]
    module: str
    kind: str
    quantizable: bool


@dataclass(frozen=True)
class PortMapping:
    """What a checkpoint's tensors become.

    Attributes:
        outputs: an expression for each parameter of the port, in the port's order.
        dropped: checkpoint tensors that no output uses, each with the reason.
        integers: matrices that the checkpoint holds in whole numbers; their numbers are taken as
            they are, as transformers does.
    """

    outputs: Mapping[str, Expr]
    dropped: Mapping[str, str]
    integers: tuple[str, ...] = ()


class Port:
    """A model class of mlx-lm with the config that it was chosen for.

    Args:
        config: the normalised config.
        model_class, args_class: the port's `Model` and `ModelArgs`.

    Raises:
        UnsupportedError: the port refuses the config.
    """

    def __init__(self, config: dict[str, Any], model_class: type, args_class: type) -> None:
        self.config = config
        self.model_type = str(config["model_type"])
        self.module: str = model_class.__module__
        self._model_class = model_class
        try:
            self.args = args_class.from_dict(config)  # type: ignore[attr-defined]
            self._skeleton = self.build()
        except UnsupportedError:
            raise
        except Exception as error:
            raise UnsupportedError(
                f"{self.module} cannot be built from this config: "
                f"{type(error).__name__}: {error}; check config.json against the model's "
                "documentation, or report the config"
            ) from error

    @property
    def model_file(self) -> str:
        """Source of the file that a folder needs beside its weights; "" for mlx-lm's own models."""
        return ""

    def is_source(self, text: str, precision: Mapping[str, str] | None = None) -> bool:
        """Whether a model file is this port's, however it is formatted.

        Args:
            text: of the file.
            precision: types that modules compute in, which are part of the file.
        """
        return False

    @property
    def classes(self) -> tuple[type, type]:
        """`Model` and `ModelArgs`."""
        return self._model_class, type(self.args)

    def build(self) -> Any:
        """A fresh `mlx.nn.Module` in inference mode; its weights are lazy."""
        model = self._model_class(self.args)
        model.eval()
        return model

    @cached_property
    def targets(self) -> dict[str, Target]:
        """Every parameter by name, in the port's order."""
        from mlx.utils import tree_flatten

        modules = dict(self._skeleton.named_modules())
        parameters: Any = tree_flatten(self._skeleton.parameters())
        targets = {}
        for name, array in parameters:
            path, _, leaf = name.rpartition(".")
            owner = modules.get(path)
            quantizable = leaf == "weight" and hasattr(owner, "to_quantized")
            kind = type(owner).__name__ if owner is not None else ""
            targets[name] = Target(name, tuple(array.shape), path, kind, quantizable)
        return targets

    @property
    def module_paths(self) -> list[str]:
        """Dotted path of every module but the model itself."""
        return sorted(path for path, _ in self._skeleton.named_modules() if path)

    @cached_property
    def layer_count(self) -> int:
        """Number of decoder layers, as the port counts them."""
        return len(getattr(self._skeleton, "layers", ()))

    def quantization_choice(self, path: str) -> bool | dict[str, Any]:
        """What the port itself says of quantizing a module (mlx-lm's `quant_predicate`)."""
        predicate = getattr(self._skeleton, "quant_predicate", None)
        if predicate is None:
            return True
        return predicate(path, dict(self._skeleton.named_modules())[path])  # type: ignore[no-any-return]

    def keeps_dtype(self, name: str) -> bool:
        """True for a parameter that the port wants in its own precision (`cast_predicate`)."""
        predicate = getattr(self._skeleton, "cast_predicate", None)
        return predicate is not None and not predicate(name)

    def map_state(self, state: Mapping[str, Expr]) -> PortMapping:
        """Map a checkpoint's tensors to the port's parameters, from headers alone.

        Args:
            state: tensors under their Hugging Face names.

        Raises:
            PlanError: parameters that nothing fills, tensors that fit nowhere or are left out
                for no known reason, wrong shapes, or complex numbers; all in one message.
            UnsupportedError: the port's mapping cannot be planned.
        """
        outputs = self._outputs(state)
        problems = self._problems(outputs, state)
        if problems:
            raise PlanError(
                f"the checkpoint does not fit {self.module} ({len(problems)} problems):\n  "
                + "\n  ".join(problems[:20])
                + (f"\n  ... and {len(problems) - 20} more" if len(problems) > 20 else "")
                + "\nThe checkpoint is incomplete, of another model, or its config.json differs."
            )
        dropped = self._dropped(outputs, state)
        integers = tuple(
            name
            for name, target in self.targets.items()
            if target.quantizable and not outputs[name].dtype.floating
        )
        outputs |= {name: cast(outputs[name], DTYPES["F32"]) for name in integers}
        return PortMapping({name: outputs[name] for name in self.targets}, dropped, integers)

    def knows(self, state: Mapping[str, Expr]) -> bool:
        """Whether tensors have names of this model; what is wrong with some is told by `map_state`.

        The port's own mapping would not do: some of them take off prefixes that PyTorch's model
        does not know.

        Args:
            state: tensors under what may be their Hugging Face names.
        """
        if 2 * sum(name in self.targets for name in state) > len(state):
            return True
        body = f"{body_name(self.config)}."
        within = [name for name in state if name.startswith(body)]
        return bool(within) and not any(name.startswith(2 * body) for name in within)

    def _outputs(self, state: Mapping[str, Expr]) -> dict[str, Expr]:
        """An expression for each parameter, as far as the checkpoint has its tensors."""
        from torch2mlx.architectures.registry import rename_state

        renamed = rename_state(state, self.config)
        # Some ports take an unused head out of themselves here, so each call gets a fresh one.
        self._skeleton = self.build()
        self.__dict__.pop("targets", None)
        sanitize = getattr(self._skeleton, "sanitize", None)
        try:
            return dict(trace_call(sanitize, renamed) if sanitize else renamed)
        except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
            raise PlanError(self._mapping_failed(renamed, error)) from error

    def _dropped(self, outputs: Mapping[str, Expr], state: Mapping[str, Expr]) -> dict[str, str]:
        """Tensors that no output uses, each with the reason; an error where one has none."""
        used = {id(leaf) for expr in outputs.values() for leaf in _leaves(expr)}
        reasons = {
            name: drop_reason(name, expr.shape, self.config)
            for name, expr in state.items()
            if not any(id(leaf) in used for leaf in _leaves(expr))
        }
        unknown = [name for name, reason in reasons.items() if not reason]
        if unknown:
            family = self.config.get("source_model_type") or self.model_type
            raise PlanError(
                f"{self.module} leaves out {len(unknown)} tensors of the checkpoint, and there is "
                "no known reason why it may:\n  "
                + "\n  ".join(f"{name} {list(state[name].shape)}" for name in unknown[:20])
                + (f"\n  ... and {len(unknown) - 20} more" if len(unknown) > 20 else "")
                + "\nThe result would be another model, so nothing is converted, with --no-verify "
                "neither. Try another version of mlx-lm; if text needs no such tensor, declare so: "
                f"`dropped` in the rules of {str(family)!r} in torch2mlx/architectures/families"
            )
        return {name: reason for name, reason in reasons.items() if reason}

    def _mapping_failed(self, state: Mapping[str, Expr], error: Exception) -> str:
        if isinstance(error, KeyError):
            missing = str(error.args[0])
            close = get_close_matches(missing, list(state), n=1)
            hint = f"; the nearest name there is {close[0]!r}" if close else ""
            return f"the checkpoint lacks tensor {missing!r}, which {self.module} needs{hint}"
        return (
            f"{self.module} cannot map this checkpoint's tensors: {type(error).__name__}: {error}"
        )

    def _problems(self, outputs: Mapping[str, Expr], state: Mapping[str, Expr]) -> list[str]:
        problems = []
        for name, target in self.targets.items():
            if name not in outputs:
                close = get_close_matches(name, list(state), n=1, cutoff=0.8)
                hint = f" (the checkpoint has {close[0]!r})" if close else ""
                problems.append(f"missing: {name} {list(target.shape)}{hint}")
            elif outputs[name].shape != target.shape:
                stored = next((leaf.name for leaf in sources_of(outputs[name])), "a constant")
                problems.append(
                    f"misshapen: {name} should be {list(target.shape)}, the checkpoint gives "
                    f"{list(outputs[name].shape)} (from {stored!r})"
                )
            elif outputs[name].dtype.name == "C64":
                problems.append(f"complex: {name}, which the model computes with as real numbers")
        for name, expr in outputs.items():
            if name not in self.targets:
                problems.append(f"unexpected: {name} {list(expr.shape)}")
        return problems


def _leaves(expr: Expr) -> list[Expr]:
    if not expr.children:
        return [expr]
    return [leaf for child in expr.children for leaf in _leaves(child)]


def load_port(config: dict[str, Any]) -> Port:
    """The port for a config.json: mlx-lm's, or a generated one if it has a `model_file`.

    Args:
        config: as saved, of any transformers version.

    Raises:
        UnsupportedError: no port of this model type, the port refuses the config, or a size in
            it is one that no model has.
    """
    from torch2mlx.architectures.normalize import normalize_config

    check_sizes(config)
    if config.get("model_file") == MODEL_FILE:
        from torch2mlx.compiler.decoders.port import generated_port

        return generated_port(config)
    normalised = normalize_config(config)
    model_class, args_class = _port_classes(normalised)
    return Port(normalised, model_class, args_class)


def plain_port(config: dict[str, Any]) -> Port:
    """The port that mlx-lm itself would build from a config.json, nothing normalised.

    Raises:
        UnsupportedError: see `load_port`.
    """
    check_sizes(config)
    return Port(config, *_port_classes(config))


def _port_classes(config: dict[str, Any]) -> tuple[type, type]:
    from mlx_lm.utils import _get_classes

    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type.replace("-", "_").isidentifier():
        raise UnsupportedError(f"config.json: model_type {model_type!r} is no name of a model type")
    names = config.get("architectures")
    if names is not None and not (
        isinstance(names, list) and all(isinstance(name, str) for name in names)
    ):
        raise UnsupportedError(
            f"config.json: expected architectures to be a list of names, found {str(names)[:80]!a}"
        )
    try:
        return _get_classes(config=config)  # type: ignore[no-any-return]
    except SystemExit as error:
        raise UnsupportedError(f"{model_type!r}: {ENDS_PROGRAM}") from error
    except ValueError as error:
        close = similar_ports(model_type)
        hint = f"; similar: {', '.join(close)}" if close else ""
        raise UnsupportedError(
            f"model type {model_type!r} has no port in mlx-lm {version('mlx-lm')} "
            f"({len(available_ports())} types){hint}"
        ) from error
