"""The MLX side of every comparison: the converted model, in float32, with its layers recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from torch2mlx.errors import ParityError
from torch2mlx.verification.reference import Trace

if TYPE_CHECKING:
    from pathlib import Path

    import mlx.core as mx
    from mlx.nn.layers.base import Module

    from torch2mlx.architectures.port import Port
    from torch2mlx.planning.expressions import Expr, Reader

__all__ = ["build_candidate", "open_folder", "run_cached", "run_candidate", "to_float32"]

Array = np.ndarray[Any, Any]


def build_candidate(port: Port, state: Mapping[str, Expr], reader: Reader) -> Module:
    """The port's model with the weights of a checkpoint, mapped as a conversion maps them.

    Args:
        port: the port for the config of `state`.
        state: checkpoint tensors under their Hugging Face names.
        reader: what the expressions of `state` read from.

    Returns:
        a model in inference mode whose floating-point parameters are float32.

    Raises:
        PlanError: tensors and port do not fit together.
    """
    import mlx.core as mx

    from torch2mlx.dtypes import DTYPES, to_mx
    from torch2mlx.planning.functions import cast
    from torch2mlx.planning.regions import full

    model: Module = port.build()
    weights = {}
    for name, expr in port.map_state(state).outputs.items():
        if expr.dtype.floating and expr.dtype.mx_name is None:  # fp8: MLX would see its codes
            expr = cast(expr, DTYPES["F32"])
        bits = np.ascontiguousarray(expr.read(full(expr.shape), reader))
        value = _float32(to_mx(bits.reshape(expr.shape), expr.dtype))
        mx.eval(value)
        weights[name] = value
    # As mlx-lm does on loading: some ports drop an unused head of theirs here.
    if hasattr(model, "sanitize"):
        weights = model.sanitize(weights)
    model.load_weights(list(weights.items()), strict=True)
    return model


def open_folder(folder: Path, config: Mapping[str, Any]) -> tuple[Module, dict[str, Any]]:
    """A written folder as mlx-lm opens it, weights lazy, and its config.json.

    A generated model is generated again, rather than the folder's own file run.

    Args:
        folder: the MLX folder.
        config: of the checkpoint, or of the folder.
    """
    from mlx_lm.utils import load_model

    from torch2mlx.architectures.port import MODEL_FILE, load_port

    if config.get("model_file") != MODEL_FILE:
        return load_model(folder, lazy=True)
    classes = load_port(dict(config)).classes
    return load_model(
        folder,
        lazy=True,
        model_config={"model_file": None},
        get_model_classes=lambda config: classes,
    )


def to_float32(model: Module) -> Module:
    """Cast every floating-point parameter of a loaded model, scales and biases included."""
    from mlx.utils import tree_map

    model.update(tree_map(_float32, model.parameters()))  # type: ignore[no-untyped-call]
    return model


def _float32(value: mx.array) -> mx.array:
    import mlx.core as mx

    with mx.stream(mx.cpu):
        return value.astype(mx.float32) if mx.issubdtype(value.dtype, mx.floating) else value


def _layer_list(model: Module) -> list[Any]:
    """The list object that the model iterates over, or [] where the port has none."""
    from mlx.nn.layers.base import Module

    try:
        layers = [layer for layer in model.layers if layer is not None]
    except AttributeError:
        return []
    return [layer for layer in layers if isinstance(layer, Module)]


@contextmanager
def _recording(layers: Sequence[Any], outputs: dict[int, Any]) -> Iterator[None]:
    """Note every layer's output while the model runs.

    A layer gets a subclass of its own class for the time being: ports read attributes of their
    layers (`layer.is_linear`, `layer.self_attn ...`), and their parameters must stay in the tree.
    """
    originals = [type(layer) for layer in layers]

    def recorder(cls: type, index: int) -> type:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = cls.__call__(self, *args, **kwargs)
            outputs[index] = result[0] if isinstance(result, tuple) else result
            return result

        return type(cls.__name__, (cls,), {"__call__": call})

    for index, (layer, cls) in enumerate(zip(layers, originals, strict=True)):
        layer.__class__ = recorder(cls, index)
    try:
        yield
    finally:
        for layer, cls in zip(layers, originals, strict=True):
            layer.__class__ = cls


def run_candidate(model: Module, tokens: Array) -> Trace:
    """Logits and every layer's output for one sequence of token ids [tokens].

    In one piece through a fresh cache, as generation reads a prompt: without a cache the port of
    gemma 3n gives layers that share keys and values projections of their own.

    Raises:
        ParityError: the model fails, or gives no logits.
    """
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    layers = _layer_list(model)
    outputs: dict[int, Any] = {}
    ids = mx.array(np.asarray(tokens, dtype=np.int32))[None]
    try:
        with _on_cpu(), _recording(layers, outputs):
            logits = _logits(model(ids, cache=make_prompt_cache(model)))
            mx.eval(logits, [v for v in outputs.values() if isinstance(v, mx.array)])
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ParityError(
            f"{type(model).__module__} does not run with this config: {type(error).__name__}: "
            f"{error}; check config.json, or use --no-verify to skip the proof"
        ) from error
    hidden = [outputs.get(i) for i in range(len(layers))]
    return Trace(
        _numpy(logits)[0],
        tuple(_drop_batch(_numpy(v)) if isinstance(v, mx.array) else None for v in hidden),
    )


def run_cached(model: Module, tokens: Array, chunks: Sequence[int]) -> Array:
    """Logits of the same sequence, fed through the port's cache in pieces.

    Args:
        model: in inference mode.
        tokens: ids [tokens].
        chunks: lengths of the pieces; their sum is the number of tokens used.

    Returns:
        float32 [sum(chunks), vocabulary].
    """
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    cache = make_prompt_cache(model)
    start, parts = 0, []
    with _on_cpu():
        for length in chunks:
            ids = mx.array(np.asarray(tokens[start : start + length], dtype=np.int32))[None]
            logits = _logits(model(ids, cache=cache))
            mx.eval(logits, [c.state for c in cache if hasattr(c, "state")])
            parts.append(_numpy(logits)[0])
            start += length
    return np.concatenate(parts)


@contextmanager
def _on_cpu() -> Iterator[None]:
    """Float32 on Metal may use reduced-precision products; the CPU rounds the same everywhere."""
    import mlx.core as mx

    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    try:
        yield
    finally:
        mx.set_default_device(before)


def _logits(output: Any) -> Any:
    import mlx.core as mx

    value = getattr(output, "logits", output)
    value = value[0] if isinstance(value, tuple) else value
    if not isinstance(value, mx.array) or value.ndim != 3:
        raise ParityError(
            f"the MLX model returned {type(value).__name__} where logits [1, tokens, vocabulary] "
            "were expected; convert unproven with --no-verify"
        )
    return value


def _numpy(value: mx.array) -> Array:
    import mlx.core as mx

    return np.array(value.astype(mx.float32))


def _drop_batch(value: Array) -> Array:
    return value[0] if value.ndim == 3 else value
