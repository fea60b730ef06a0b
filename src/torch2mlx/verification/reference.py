"""The PyTorch side of every comparison: the transformers model, in float32, on the CPU.

Checkpoint names and layouts (per-expert tensors, old prefixes ...) are mapped by transformers'
own loader, so a state dict in hub naming is what goes in and the reference is the library's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torch2mlx.dtypes import to_torch
from torch2mlx.errors import PlanError, UnsupportedError
from torch2mlx.messages import first_line
from torch2mlx.planning.plan import is_output_head
from torch2mlx.verification.corrections import DECAYS, correct

if TYPE_CHECKING:
    import torch

    from torch2mlx.planning.expressions import Expr, Reader

__all__ = [
    "Trace",
    "allow_code",
    "brings_code",
    "build_reference",
    "build_skeleton",
    "decoder_layers",
    "instance",
    "match_rounding",
    "quiet",
    "read_state",
    "reference_config",
    "run_reference",
    "swap_gelu",
]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Trace:
    """What a model computed for one sequence.

    Attributes:
        logits: float32 [tokens, vocabulary].
        layers: output of each layer, float32 [..., tokens, width]; None where it is no array.
    """

    logits: Array
    layers: tuple[Array | None, ...] = ()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and warnings off the terminal, then restore them."""
    import warnings

    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def brings_code(config: Mapping[str, Any]) -> bool:
    """Whether transformers knows a checkpoint's model type by the checkpoint's own code alone."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    places = config.get("auto_map") or {}
    return "AutoConfig" in places and str(config.get("model_type")) not in CONFIG_MAPPING


def allow_code(config: Mapping[str, Any], folder: Path) -> None:
    """Make transformers know the classes that a checkpoint brings along (`auto_map`).

    This runs code of the checkpoint, so only where the user allowed it.  A model type that
    transformers knows itself is left alone.

    Args:
        config: contents of config.json.
        folder: the checkpoint's, with its Python files.

    Raises:
        UnsupportedError: the code cannot be loaded, or it has no language model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    if not brings_code(config):
        return
    places, model_type = config["auto_map"], str(config.get("model_type"))
    try:
        with quiet():
            config_class, model_class = (
                get_class_from_dynamic_module(places[name], str(folder))
                for name in ("AutoConfig", "AutoModelForCausalLM")
            )
            AutoConfig.register(model_type, config_class)
            AutoModelForCausalLM.register(config_class, model_class)
    except Exception as error:
        raise UnsupportedError(
            f"{folder}: the checkpoint's own code for {model_type!r} cannot be used: "
            f"{type(error).__name__}: {error}; convert unproven with --no-verify"
        ) from error


def reference_config(config: Mapping[str, Any]) -> Any:
    """Transformers' config object of a config.json.

    Args:
        config: the file's contents; a `quantization_config` is left out, since the reference
            computes with dequantized values.

    Raises:
        UnsupportedError: transformers knows no such model type (see `allow_code`), or refuses
            the config.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = str(config.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        own = bool(config.get("auto_map"))
        raise UnsupportedError(
            f"config.json: the installed transformers has no model type {model_type!r}, so the "
            "result cannot be compared with PyTorch; "
            + ("allow the checkpoint's own code with --trust-remote-code" if own else "upgrade it")
            + ", or convert unproven with --no-verify"
        )
    values = {k: v for k, v in config.items() if k not in ("quantization_config", "quantization")}
    try:
        with quiet():
            result = CONFIG_MAPPING[model_type].from_dict(deepcopy(values))  # which fills it in
    except Exception as error:
        raise UnsupportedError(
            f"config.json: transformers refuses this {model_type!r} config: {error}; correct "
            "the config, or convert without the parity gate (--no-verify)"
        ) from error
    result._attn_implementation = "eager"  # sdpa leaves soft caps and sinks out
    if hasattr(result, "_experts_implementation"):
        result._experts_implementation = "eager"
    return result


def _model_class(config: Any) -> Any:
    """The class with a language-model head for a config object."""
    from transformers.models.auto import modeling_auto

    mappings = [
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING,
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    ]
    if config.get_text_config() is not config:
        mappings.reverse()  # the text class alone would want the nested config
    for mapping in mappings:
        if type(config) in mapping:
            return mapping[type(config)]
    raise UnsupportedError(
        f"transformers has no language model for {config.model_type!r}, so the result cannot be "
        "compared with PyTorch; convert unproven with --no-verify"
    )


def build_skeleton(config: Mapping[str, Any]) -> torch.nn.Module:
    """The model on the meta device: every module and shape, no memory."""
    import torch

    settings = reference_config(config)
    with quiet(), torch.device("meta"):
        return instance(settings)


def instance(settings: Any, dtype: torch.dtype | None = None) -> torch.nn.Module:
    """A model with transformers' own initial values, float32 by default.

    Raises:
        UnsupportedError: transformers has no such model, or refuses the settings.
    """
    import torch

    cls = _model_class(settings)
    try:
        with quiet():
            model = cls._from_config(settings, dtype=dtype or torch.float32)
    except ImportError as error:
        raise UnsupportedError(
            f"PyTorch's {cls.__name__} cannot be built here: {first_line(error)} Install what it "
            "asks for, or convert unproven with --no-verify"
        ) from error
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError) as error:
        raise UnsupportedError(
            f"PyTorch's {cls.__name__} cannot be built from this config: {type(error).__name__}: "
            f"{error}; check config.json against the model's documentation"
        ) from error
    correct(model)
    return model.eval()  # type: ignore[no-any-return]


def build_reference(
    config: Mapping[str, Any],
    state: Mapping[str, torch.Tensor] | None = None,
    folder: Path | None = None,
    trust_remote_code: bool = False,
) -> torch.nn.Module:
    """The float32 model with the weights of a state dict in hub naming.

    Args:
        config: contents of config.json.
        state: weights; None gives transformers' own random initial values.
        folder: the checkpoint's, where code of its own lies.
        trust_remote_code: run that code.

    Raises:
        UnsupportedError: transformers has no such model.
        PlanError: weights that a run on text needs are missing, or some have another shape.
    """
    import torch

    if trust_remote_code and folder is not None:
        allow_code(config, folder)
    settings = reference_config(config)
    if state is None:
        return instance(settings)
    cls = _model_class(settings)
    try:
        with quiet():
            model, info = cls.from_pretrained(
                None,
                config=settings,
                state_dict=dict(state),
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, with names and shapes
                attn_implementation="eager",
            )
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise PlanError(
            f"PyTorch's {cls.__name__} cannot load the checkpoint's tensors: {reason}; the "
            "checkpoint and config.json do not belong together, or transformers cannot convert "
            "this checkpoint (convert unproven with --no-verify)"
        ) from error
    missing = (n for n in info["missing_keys"] if n.rpartition(".")[2] not in DECAYS)
    absent = sorted(_used_by_text(model, missing))
    if absent:
        raise PlanError(
            f"PyTorch's {cls.__name__} misses {len(absent)} tensors, the first {absent[0]!r}: the "
            "checkpoint and config.json do not belong together, or the checkpoint is incomplete"
        )
    odd = sorted(info["mismatched_keys"], key=str)
    if odd:
        name, found, expected = (*odd[0], None, None)[:3]
        raise PlanError(
            f"tensor {name!r}: shape {found}, PyTorch's {cls.__name__} expects {expected}: the "
            "checkpoint and config.json do not belong together"
        )
    if info.get("error_msgs"):
        raise PlanError(f"PyTorch's {cls.__name__} cannot load it: {info['error_msgs'][0]}")
    correct(model)
    return model.eval()  # type: ignore[no-any-return]


def _used_by_text(model: Any, names: Iterable[str]) -> list[str]:
    """Those of some parameters that a run on text uses.

    That is all of them, but in a model of several inputs only those of decoder and head: text
    checkpoints come with a config that names image towers, which then keep their initial values.
    """
    if model.config.get_text_config() is model.config:
        return list(names)
    paths = {id(module): name for name, module in model.named_modules()}
    used = tuple(
        f"{paths[id(module)]}."
        for module in (model.get_decoder(), model.get_output_embeddings())
        if module is not None and paths.get(id(module))
    )
    return [n for n in names if n.startswith(used) or is_output_head(n)] if used else list(names)


def decoder_layers(model: torch.nn.Module) -> tuple[str, torch.nn.ModuleList]:
    """The list of decoder layers and its dotted name.

    Raises:
        UnsupportedError: the model has no such list.
    """
    import torch

    config: Any = model.config
    count = config.get_text_config().num_hidden_layers
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model  # type: ignore[operator]
    names = {id(module): name for name, module in model.named_modules()}
    lists = [m for m in decoder.modules() if isinstance(m, torch.nn.ModuleList)]
    children = {id(m) for m in decoder.children()}
    # LongCat counts two attention blocks a layer, so its list is half as long as its count.
    for module in (
        *(m for m in lists if len(m) == count),
        *(m for m in lists if id(m) in children and len(m) > 1),
    ):
        return names[id(module)], module
    raise UnsupportedError(
        f"{type(model).__name__}: no list of {count} decoder layers was found, so layers cannot be "
        "compared one by one; convert unproven with --no-verify"
    )


def match_rounding(model: torch.nn.Module, port_module: str) -> None:
    """Give the reference a rounding that the port keeps at every precision.

    Gemma 3 multiplies embeddings by √width in the checkpoint's dtype, bfloat16; its port fixes
    that rounded factor, while PyTorch in float32 would compute with the exact one.
    """
    import torch

    if port_module.rpartition(".")[2] not in ("gemma3", "gemma3_text"):
        return
    for module in model.modules():
        scale = getattr(module, "embed_scale", None)
        if torch.is_tensor(scale):
            module.embed_scale = scale.to(torch.bfloat16).to(scale.dtype)


def swap_gelu(model: torch.nn.Module) -> bool:
    """Exchange the two forms of GELU, exact (erf) and tanh, in place; False if there is none.

    Some ports compute the other form.  Its values differ by up to 5e-4, which no one can hear,
    but which would hide anything else below it.
    """
    from transformers.activations import ACT2FN

    exact, tanh = (
        ("GELUActivation", "GELU"),
        ("GELUTanh", "NewGELUActivation", "FastGELUActivation"),
    )
    found = False
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            kind = type(child).__name__
            if kind in exact or kind in tanh:
                setattr(module, name, ACT2FN["gelu_pytorch_tanh" if kind in exact else "gelu"])
                found = True
    return found


def run_reference(model: torch.nn.Module, tokens: Array) -> Trace:
    """Logits and every layer's output for one sequence of token ids [tokens].

    Raises:
        UnsupportedError: PyTorch's model fails.
    """
    import torch

    outputs: dict[int, Array | None] = {}

    def record(index: int) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            outputs[index] = (
                value.detach().float().numpy().copy() if torch.is_tensor(value) else None
            )

        return hook

    try:
        layers = decoder_layers(model)[1]
    except UnsupportedError:
        layers = torch.nn.ModuleList()
    handles = [layer.register_forward_hook(record(i)) for i, layer in enumerate(layers)]
    try:
        with torch.no_grad(), quiet():
            ids = torch.from_numpy(np.asarray(tokens, dtype=np.int64))[None]
            logits = model(input_ids=ids, use_cache=False).logits[0].float().numpy()
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        raise UnsupportedError(
            f"PyTorch's {type(model).__name__} does not run with this config: "
            f"{type(error).__name__}: {error}; check config.json, or use --no-verify"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return Trace(logits, tuple(_drop_batch(outputs.get(i)) for i in range(len(layers))))


def _drop_batch(value: Array | None) -> Array | None:
    return value[0] if value is not None and value.ndim == 3 else value


def read_state(state: Mapping[str, Expr], reader: Reader) -> dict[str, torch.Tensor]:
    """Every tensor of a state in memory; floating-point values as float32."""
    from torch2mlx.planning.regions import full

    result = {}
    for name, expr in state.items():
        value = to_torch(expr.read(full(expr.shape), reader), expr.dtype)
        result[name] = value.float() if expr.dtype.floating else value
    return result
