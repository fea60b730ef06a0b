"""A decoder of transformers as a graph of ATen and of `operators`, through its own registries.

Before:  the model, on the meta device
After:   logits = f(input_ids, cache); attention, cache updates, masks and experts one node each
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from torch2mlx.compiler.decoders.lightning import single_lightning
from torch2mlx.compiler.decoders.long_rotary import chosen_frequencies
from torch2mlx.compiler.decoders.operators import operators
from torch2mlx.compiler.export import export_module

__all__ = ["trace"]

_NAME = "torch2mlx"
_LENGTH, _SEEN = 6, 5
"""Of the example: sizes that no model has."""


@dataclass
class _Call:
    """What the registries need to know while the model is traced."""

    cache: Tensor
    layer: int = -1


_current: list[_Call] = []


def trace(model: Any) -> torch.export.ExportedProgram:
    """The program of a model on the meta device, batch, length and cache dynamic.

    Raises:
        CompileError: with every reason.
    """
    from torch.export import Dim

    ids = torch.zeros(2, _LENGTH, dtype=torch.long, device="meta")
    cache = torch.zeros(_LENGTH + _SEEN, device="meta")
    auto = Dim.AUTO
    shapes = {"input_ids": {0: auto, 1: auto}, "cache": {0: auto}}
    long = chosen_frequencies(model, lambda: _current[-1].cache)
    lightning = single_lightning(model, lambda: _current[-1].cache)
    with _registered(model), _called_with_cache(model), long, lightning, _Indices():
        return export_module(model, (ids, cache), None, shapes)


@contextmanager
def _called_with_cache(model: Any) -> Iterator[None]:
    """Let the model's `forward` take ids and cache, and return logits."""
    forward = type(model).forward
    parameters = inspect.signature(forward).parameters
    takes_positions = "position_ids" in parameters
    past_name = "cache_params" if "cache_params" in parameters else "past_key_values"

    def call(self: Any, input_ids: Tensor, cache: Tensor) -> Tensor:
        given: dict[str, Any] = {}
        if takes_positions:
            given["position_ids"] = operators().positions(input_ids, cache)
        _current.append(_Call(cache))
        try:
            past = traced_cache(cache, input_ids.shape[1])
            given[past_name] = past
            output = forward(self, input_ids=input_ids, use_cache=True, **given)
        finally:
            _current.pop()
        logits: Tensor = output.logits
        return logits

    model.forward = types.MethodType(call, model)
    try:
        yield
    finally:
        del model.forward


def traced_cache(cache: Tensor, length: int) -> Any:
    """A cache of transformers whose updates are operators."""
    from transformers.cache_utils import Cache

    class TracedCache(Cache):
        is_compileable = False

        def __init__(self) -> None:
            self.layers: list[Any] = []

        def update(
            self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **_: Any
        ) -> tuple[Tensor, Tensor]:
            made: tuple[Tensor, Tensor] = operators().update(
                key_states, value_states, cache, layer_idx
            )
            return made

        def update_conv_state(
            self,
            conv_states: Tensor,
            layer_idx: int,
            state_idx: int = 0,
            conv_kernel_size: int | None = None,
            **_: Any,
        ) -> Tensor:
            if conv_kernel_size is None:
                raise NotImplementedError("a convolution that does not tell its length")
            _current[-1].layer = layer_idx
            made: Tensor = operators().keep_columns(
                conv_states, cache, layer_idx, 2 * state_idx, conv_kernel_size
            )
            return made

        def get_conv_state(self, *_: Any, **__: Any) -> None:
            return None

        def get_recurrent_state(self, *_: Any, **__: Any) -> None:
            return None

        def update_recurrent_state(
            self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **_: Any
        ) -> Tensor:
            return recurrent_states

        def has_previous_state(self, *_: Any, **__: Any) -> bool:
            return False

        def is_recording_past(self, *_: Any, **__: Any) -> bool:
            return False

        def get_seq_length(self, layer: int = 0) -> int:
            return cache.shape[0] - length

        def get_query_offset(self, layer: int = 0) -> int:
            return cache.shape[0] - length

        def get_mask_sizes(self, query_length: int, layer: int = 0) -> tuple[int, int]:
            return cache.shape[0], 0

    return TracedCache()


# What transformers calls in place of its own functions


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    unknown = [k for k, v in others.items() if isinstance(v, Tensor) and k not in _HARMLESS]
    if unknown:
        raise NotImplementedError(f"{type(module).__name__}: attention takes {', '.join(unknown)}")
    if attention_mask is None and key.shape[2] == query.shape[2]:
        raise NotImplementedError(f"{type(module).__name__}: attention without a cache or a mask")
    scale = float(query.shape[-1] ** -0.5 if scaling is None else scaling)
    made = operators().attention(
        query, key, value, attention_mask, _current[-1].cache, s_aux, scale, float(softcap or 0)
    )
    return made.transpose(1, 2).contiguous(), None


_HARMLESS = ("position_ids", "cache_position", "position_embeddings")


def _mask(batch_size: int, q_length: int, mask_function: Callable[..., Any], **_: Any) -> Tensor:
    window, chunk = mask_kind(mask_function)
    made: Tensor = operators().mask(_current[-1].cache, batch_size, q_length, window, chunk)
    return made


def _float_mask(dtype: torch.dtype = torch.float32, **given: Any) -> Tensor:
    """For models that add the mask to their scores."""
    allowed = _mask(**given)
    zero = torch.zeros((), dtype=dtype, device=allowed.device)
    return torch.where(allowed, zero, torch.finfo(dtype).min)


def mask_kind(function: Callable[..., Any]) -> tuple[int, int]:
    """(window, chunk) of a causal mask function of transformers, 0 for none."""
    name = getattr(function, "__qualname__", "")
    closure = inspect.getclosurevars(function).nonlocals
    if name == "causal_mask_function":
        return 0, 0
    if name == "sliding_window_overlay.<locals>.inner_mask":
        return int(closure["sliding_window"]), 0
    if name == "chunked_overlay.<locals>.inner_mask":
        return 0, int(closure["chunk_size"])
    if name == "and_masks.<locals>.and_mask":
        kinds = [mask_kind(part) for part in closure["mask_functions"]]
        window, chunk = (max(sizes) for sizes in zip(*kinds, strict=True))
        names = [getattr(part, "__qualname__", "") for part in closure["mask_functions"]]
        if len(kinds) == 2 and "causal_mask_function" in names:
            return window, chunk
    raise NotImplementedError(f"a mask of another kind ({name})")


def _switch(module: Any, hidden: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """Experts of transformers: every token through its own, weighed and summed."""
    x, experts, order, in_order = operators().expert_rows(hidden, indices)

    def linear(x: Tensor, name: str) -> Tensor:
        bias = getattr(module, f"{name}_bias") if module.has_bias else None
        made: Tensor = operators().switch_linear(
            x, getattr(module, name), bias, experts, in_order, module.is_transposed
        )
        return made

    if module.has_gate:
        y = module._apply_gate(linear(x, "gate_up_proj"))
    else:
        y = module.act_fn(linear(x, "up_proj"))
    y = linear(y, "down_proj")
    if module.has_post_expert_norm:
        y = module.post_expert_norm(y)
    y = operators().token_rows(y, order, indices)
    made: Tensor = (y * weights.unsqueeze(-1)).sum(-2).to(hidden.dtype)
    return made


def _without_padding(hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
    made: Tensor = operators().without_padding(hidden_states, _current[-1].cache, -1)
    return made


def _mamba2_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,  # noqa: N803  (transformers' names)
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    chunk_size: int,
    D: Tensor | None = None,  # noqa: N803
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    z: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    if z is not None:
        raise NotImplementedError("a scan with a gate of its own")
    call = _current[-1]
    low, high = map(float, dt_limit)
    y = operators().mamba2_scan(
        *(hidden_states, call.cache, call.layer, 1),
        *(dt, A, B, C, D, dt_bias, dt_softplus, low, high),
    )
    return y, y


def _selective_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,  # noqa: N803
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor | None = None,  # noqa: N803
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    call = _current[-1]
    y = operators().selective_scan(
        *(hidden_states, call.cache, call.layer, 1),
        *(dt, A, B, C, D, z, delta_bias, delta_softplus),
    )
    return y, y


def _delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    chunk_size: int = 64,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    call = _current[-1]
    y = operators().delta_rule(
        *(value, call.cache, call.layer, 1), *(query, key, g, beta, use_qk_l2norm_in_kernel)
    )
    return y, y


_SCANS: dict[str, Any] = {
    "apply_mask_to_padding_states": _without_padding,
    "mamba2_chunk_scan": _mamba2_scan,
    "mamba_selective_scan": _selective_scan,
    "torch_chunk_gated_delta_rule": _delta_rule,
    "chunk_kimi_delta_attention": _delta_rule,
    "MiniMaxCache": object,  # the class that its model asks a cache for
}
"""What modeling files have of states that a cache keeps."""


@contextmanager
def _registered(model: Any) -> Iterator[None]:
    """Our functions in transformers' registries, and the model's config set to them."""
    from transformers import AttentionInterface
    from transformers.integrations.moe import ExpertsInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, _mask)
    ExpertsInterface.register(_NAME, _switch)
    modules = list(model.modules())
    sources = {sys.modules[type(m).__module__] for m in modules}
    pluggable = any(hasattr(source, "ALL_ATTENTION_FUNCTIONS") for source in sources)
    for module in modules:
        config = getattr(module, "config", None)
        if config is None:
            continue
        if pluggable:
            config._attn_implementation = _NAME
        if hasattr(config, "_experts_implementation"):
            config._experts_implementation = _NAME
    masks: Any = ALL_MASK_ATTENTION_FUNCTIONS
    masks["eager"] = _float_mask
    replaced = [
        (source, name, getattr(source, name))
        for source in sources
        for name in _SCANS
        if hasattr(source, name)
    ]
    for source, name, _ in replaced:
        setattr(source, name, _SCANS[name])
    torch.tensor = _tensor  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.tensor = _TENSOR
        for source, name, original in replaced:
            setattr(source, name, original)
        del masks["eager"]


class _Indices(TorchFunctionMode):
    """Keeps the numbers of `x[..., [-2]]`, which would become a tensor on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__:
            x, key = args
            parts = key if isinstance(key, tuple) else (key,)
            args = (x, tuple(_index(part) for part in parts))
        return func(*args, **(kwargs or {}))


def _index(part: Any) -> Any:
    if not isinstance(part, list) or not all(type(i) is int for i in part):
        return part
    if len(part) == 1:
        return slice(part[0], part[0] + 1 or None)
    return _TENSOR(part, device="cpu")


_TENSOR = torch.tensor


def _tensor(data: Any, dtype: Any = None, device: Any = None, **others: Any) -> Tensor:
    """`torch.tensor` with a number as part of the program: a constant on meta would lose it."""
    if torch.device(device or "cpu").type != "meta" or not isinstance(data, bool | int | float):
        return _TENSOR(data, dtype=dtype, device=device, **others)
    usual = {bool: torch.bool, int: torch.long}.get(type(data), torch.get_default_dtype())
    return torch.full((), data, dtype=dtype or usual, device=device)
