"""An encoder-decoder of transformers as two methods: encode once, decode step by step.

Before:  logits = model(inputs, decoder_input_ids, past_key_values)
After:   cross = encode(inputs)                      keys and values of every cross-attention
         logits, own = decode(ids, cross, own)       own: keys and values of the tokens so far
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torch2mlx.compiler.encoder_decoder.kinds import GENERATES
from torch2mlx.compiler.pretrained.loading import load_pretrained
from torch2mlx.errors import SourceError
from torch2mlx.sources.companions import read_config

__all__ = [
    "EncoderDecoder",
    "Methods",
    "is_encoder_decoder",
    "load_encoder_decoder",
    "load_original",
    "methods_of",
]

Layers = list[Tensor]


class EncoderDecoder(nn.Module):
    """Keys and values of all layers as lists [batch, heads, tokens, width], in and out.

    Args:
        model: with a `generate` of its own; takes token ids or sound features.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def encode(self, inputs: Tensor, mask: Tensor | None = None) -> tuple[Layers, Layers]:
        """What the decoder attends to in the input.

        Args:
            inputs: token ids [batch, length], or features [batch, bins, frames].
            mask: 1 where a token is no padding [batch, length].
        """
        from transformers.cache_utils import DynamicCache, EncoderDecoderCache

        given = {} if mask is None else {"attention_mask": mask}
        encoded = self.model.get_encoder()(inputs, **given)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        first = torch.zeros(inputs.shape[0], 1, dtype=torch.long, device=inputs.device)
        self.model(
            encoder_outputs=encoded,
            decoder_input_ids=first,
            past_key_values=cache,
            use_cache=True,
            **given,
        )
        layers: Any = cache.cross_attention_cache.layers
        return [layer.keys for layer in layers], [layer.values for layer in layers]

    def decode(
        self,
        ids: Tensor,
        cross_keys: Layers,
        cross_values: Layers,
        keys: Layers,
        values: Layers,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Layers, Layers]:
        """Logits of the next tokens [batch, length], and the keys and values with theirs.

        Args:
            ids: [batch, length].
            cross_keys: from `encode`.
            cross_values: from `encode`.
            keys: of the tokens before these.
            values: of the tokens before these.
            mask: of the encoder's input.
        """
        from transformers.cache_utils import EncoderDecoderCache
        from transformers.modeling_outputs import BaseModelOutput

        cache = EncoderDecoderCache(_filled(keys, values), _filled(cross_keys, cross_values))
        cache.is_updated = dict.fromkeys(range(len(cross_keys)), True)
        batch, source = cross_keys[0].shape[0], cross_keys[0].shape[2]
        width = self.model.config.hidden_size
        # Its values are in the cache; only its length is asked for.
        unseen = cross_keys[0].new_zeros(()).expand(batch, source, width)
        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=unseen),
            decoder_input_ids=ids,
            past_key_values=cache,
            use_cache=True,
            **({} if mask is None else {"attention_mask": mask}),
        )
        layers: Any = cache.self_attention_cache.layers
        return output.logits, [x.keys for x in layers], [x.values for x in layers]


def _filled(keys: Layers, values: Layers) -> Any:
    """A cache of transformers that holds these."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    def length(self: Any) -> Any:
        return self.keys.shape[2]  # the original's also asks whether it is zero

    Filled: Any = type("Filled", (DynamicLayer,), {"get_seq_length": length})  # noqa: N806

    cache = DynamicCache()
    for key, value in zip(keys, values, strict=True):
        layer = Filled()
        layer.keys, layer.values = key, value
        layer.dtype, layer.device, layer.is_initialized = key.dtype, key.device, True
        cache.layers.append(layer)
    return cache


@dataclass(frozen=True)
class Methods:
    """A module with the examples that `convert` needs.

    Attributes:
        module: that has `encode` and `decode`.
        entry_points: method → its arguments.
        dynamic_shapes: method → which extents change.
        settings: what generation needs to know, for config.json.
    """

    module: EncoderDecoder
    entry_points: Mapping[str, Mapping[str, Any]]
    dynamic_shapes: Mapping[str, Any]
    settings: Mapping[str, Any]


def is_encoder_decoder(model: Any) -> bool:
    """Whether a module is a generating encoder-decoder of transformers."""
    config = getattr(model, "config", None)
    generates = getattr(model, "can_generate", None)
    return (
        bool(getattr(config, "is_encoder_decoder", False))
        and hasattr(model, "get_encoder")
        and generates is not None
        and bool(generates())
        and model.main_input_name in ("input_ids", "input_features")
    )


def load_encoder_decoder(folder: Path) -> Any:
    """The float32 model of a checkpoint's folder, its weights in memory.

    Raises:
        SourceError, UnsupportedError: see `load_pretrained`.
    """
    names = read_config(folder)["architectures"]
    return load_pretrained(folder, next(n for n in names if n.endswith(GENERATES))).model


def load_original(file: Path) -> Any:
    """The float32 model of a single file whose layout is not transformers' (OpenAI's Whisper).

    Raises:
        SourceError: its tensors are not those of the model that it describes.
    """
    from transformers import GenerationConfig

    from torch2mlx.sources import open_checkpoint
    from torch2mlx.verification.reference import quiet, read_state, reference_config

    opened = open_checkpoint(file)
    with closing(opened.source), quiet():
        model = _class_of(opened.config)(reference_config(opened.config)).float()
        state = read_state(opened.state, opened.source)
        tied = "proj_out.weight"  # the embedding, in these files too
        expected = {n: t.shape for n, t in model.state_dict().items() if n != tied}
        found = {n: t.shape for n, t in state.items()}
        wrong = sorted(n for n in expected.keys() | found if expected.get(n) != found.get(n))
        if wrong:
            raise SourceError(
                f"{file}: {len(wrong)} tensors are missing, left over or of another shape than its "
                f"dimensions say: {', '.join(wrong[:6])}; download it again"
            )
        model.load_state_dict(state, strict=False)
        kind: Any = GenerationConfig
        model.generation_config = kind(**opened.generation_config)
    return model.eval()


def _class_of(config: Mapping[str, Any]) -> Any:
    import transformers

    return getattr(transformers, config["architectures"][0])


def methods_of(model: Any) -> Methods:
    """Examples of an encoder-decoder: any batch, any tokens; features keep their length."""
    config = model.config
    module = EncoderDecoder(model).eval()
    text = model.main_input_name == "input_ids"
    if text:
        inputs = torch.randint(3, config.vocab_size, (2, 7))
        encode: dict[str, Any] = {"inputs": inputs, "mask": torch.ones_like(inputs)}
    else:
        frames = 2 * config.max_source_positions
        encode = {"inputs": torch.randn(2, config.num_mel_bins, frames)}
    with torch.no_grad():
        cross_keys, cross_values = module.encode(**encode)
    layers = len(cross_keys)
    heads, width = cross_keys[0].shape[1], cross_keys[0].shape[3]
    past = [torch.randn(2, heads, 5, width) for _ in range(2 * layers)]
    decode: dict[str, Any] = {
        "ids": torch.randint(3, config.vocab_size, (2, 3)),
        "cross_keys": cross_keys,
        "cross_values": cross_values,
        "keys": past[:layers],
        "values": past[layers:],
    }
    auto = torch.export.Dim.AUTO
    source = {0: auto, 2: auto} if text else {0: auto}
    shapes: dict[str, Any] = {
        "encode": {"inputs": {0: auto, 1: auto} if text else {0: auto}},
        "decode": {
            "ids": {0: auto, 1: auto},
            "cross_keys": [source] * layers,
            "cross_values": [source] * layers,
            "keys": [{0: auto, 2: auto}] * layers,
            "values": [{0: auto, 2: auto}] * layers,
        },
    }
    if text:
        decode["mask"] = encode["mask"]
        for method in shapes.values():
            method["mask"] = {0: auto, 1: auto}
    settings = _settings(model, layers, heads, width)
    return Methods(module, {"encode": encode, "decode": decode}, shapes, settings)


def _settings(model: Any, layers: int, heads: int, width: int) -> dict[str, Any]:
    """Special tokens and sizes of the caches; see `torch2mlx.transduction`."""
    given = model.generation_config
    ends = given.eos_token_id
    start = given.decoder_start_token_id
    if start is None:
        start = getattr(model.config, "decoder_start_token_id", None)
    settings: dict[str, Any] = {
        "takes": "tokens" if model.main_input_name == "input_ids" else "features",
        "cache": [layers, heads, width],
        "start": start if start is not None else given.bos_token_id,
        "ends": [] if ends is None else ends if isinstance(ends, list) else [ends],
        "suppressed": list(given.suppress_tokens or []),
        "suppressed_first": list(getattr(given, "begin_suppress_tokens", None) or []),
    }
    if getattr(given, "forced_bos_token_id", None) is not None:
        settings["forced_first"] = given.forced_bos_token_id
    if getattr(given, "lang_to_id", None):
        settings["languages"] = {k.strip("<|>"): i for k, i in sorted(given.lang_to_id.items())}
        settings["language"] = getattr(given, "language", None)
        settings["tasks"] = dict(given.task_to_id)
        settings["task"] = getattr(given, "task", None) or "transcribe"
    if getattr(given, "no_timestamps_token_id", None):
        settings["no_timestamps"] = given.no_timestamps_token_id
    return settings
