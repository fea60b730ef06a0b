"""What a model of transformers is called with: examples from its settings, tried in PyTorch."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torch2mlx.compiler.entry_points import EntryPoint
from torch2mlx.errors import OptionError, SourceError
from torch2mlx.sources.local_files import read_json_object

__all__ = ["entry_points_of"]

_TOKENS = 16  # of a text
_SAMPLES = 16_000  # of a sound: a second, for most
_FRAMES = 128  # of a spectrogram of any length
_MOST = 2**27  # numbers in a tensor
_BATCH = 2  # so that an extent is not taken for a constant


@dataclass(frozen=True)
class _Input:
    """An argument.

    Attributes:
        value: of the example.
        free: axes whose extent another call may choose.
    """

    value: Tensor
    free: tuple[int, ...] = (0,)


_Inputs = Mapping[str, _Input]


def entry_points_of(model: nn.Module, folder: Path) -> list[EntryPoint]:
    """Ways to compile `forward`, that with the most free extents first.

    Args:
        model: of transformers, in float32.
        folder: of its checkpoint; what the processor's file says of sizes counts.

    Raises:
        OptionError: none of the inputs that are known here suits the model.
    """
    found = _first_that_runs(model, _candidates(model, _processor(folder)))
    values = {name: given.value for name, given in found.items()}
    one = {name: value[:1] for name, value in values.items()}
    auto, free = torch.export.Dim.AUTO, torch.export.Dim.DYNAMIC
    lengths = {n: {axis: auto for axis in given.free if axis} for n, given in found.items()}
    return [
        EntryPoint("forward", (), values, {n: {0: _batch(n, found), **lengths[n]} for n in found}),
        EntryPoint("forward", (), values, {n: {0: free, **lengths[n]} for n in found}),
        EntryPoint("forward", (), one, lengths),
        EntryPoint("forward", (), one),
    ]


def _batch(name: str, inputs: Iterable[str]) -> Any:
    """The first axis: texts and pictures that a model compares need not be as many."""
    beside = name == "pixel_values" and "input_ids" in inputs
    return torch.export.Dim("pictures" if beside else "batch")


def _first_that_runs(model: nn.Module, candidates: Iterator[_Inputs]) -> _Inputs:
    objection = ""
    for inputs in itertools.islice(candidates, 40):
        torch.manual_seed(0)
        try:
            with torch.no_grad():
                model(**{name: given.value for name, given in inputs.items()})
        except Exception as error:  # whatever a model has against its inputs
            objection = objection or f"{type(error).__name__}: {str(error)[:200]}"
            continue
        return inputs
    name = type(model).__name__
    taken = ", ".join(itertools.islice(inspect.signature(model.forward).parameters, 8))
    tried = f"PyTorch objects to what was tried ({objection})" if objection else "none is known"
    raise OptionError(
        f"{name}: an example is needed to follow the computation: {tried}; forward takes {taken} "
        "...: --example inputs.pt on the command line, example_kwargs={...} in Python"
    )


def _candidates(model: Any, processor: Mapping[str, Any]) -> Iterator[_Inputs]:
    """Inputs by the names that `forward` has, the fullest first."""
    taken = inspect.signature(model.forward).parameters
    kinds: list[list[_Inputs]] = []
    if "input_ids" in taken:
        kinds.append(list(_texts(model.config, taken)))
    if "pixel_values" in taken:
        kinds.append(list(_pictures(model.config, processor)))
    if "input_features" in taken:
        kinds.append(list(_spectrograms(model.config, processor)))
    elif "input_values" in taken:
        kinds.append(list(_sounds(model.config)))
    if "past_values" in taken:
        kinds.append(list(_series(model.config)))
    if not kinds:
        return
    for choice in itertools.product(*kinds):
        yield {name: given for part in choice for name, given in part.items()}


def _texts(config: Any, taken: Mapping[str, Any]) -> Iterator[_Inputs]:
    """Token ids [batch, tokens], the second text shorter and padded."""
    settings = config.get_text_config()
    size = int(getattr(settings, "vocab_size", 0) or 128)
    places = getattr(settings, "max_position_embeddings", None)
    tokens = min(_TOKENS, places) if isinstance(places, int) and places > 0 else _TOKENS
    ids = torch.randint(min(5, size - 1), size, (_BATCH, tokens), generator=_seeded())
    padding, end = (getattr(settings, n, None) for n in ("pad_token_id", "eos_token_id"))
    if isinstance(padding, int):
        ids[ids == padding] = (padding + 1) % size
    mask = torch.ones_like(ids)
    length = tokens - tokens // 3  # of the second text
    mask[1, length:] = 0
    if isinstance(end, int) and 0 <= end < size:  # where some models read what a text is
        ids[0, -1] = ids[1, length - 1] = end
    if isinstance(padding, int) and 0 <= padding < size:
        ids[1, length:] = padding
    both = (0, 1)
    inputs: dict[str, _Input] = {"input_ids": _Input(ids, both)}
    beside: dict[str, _Input] = {}
    if "attention_mask" in taken:
        beside["attention_mask"] = _Input(mask, both)
    if "token_type_ids" in taken and int(getattr(settings, "type_vocab_size", 0) or 0) > 1:
        second = torch.arange(tokens) >= tokens // 2
        beside["token_type_ids"] = _Input(second.long().repeat(_BATCH, 1) * mask, both)
    if "bbox" in taken:
        corners = torch.arange(tokens)[:, None] * 3 + torch.tensor([0, 0, 20, 30])
        inputs["bbox"] = _Input(corners.repeat(_BATCH, 1, 1), both)
    for count in range(len(beside), -1, -1):
        yield {**inputs, **dict(itertools.islice(beside.items(), count))}


def _pictures(config: Any, processor: Mapping[str, Any]) -> Iterator[_Inputs]:
    """Pixels [batch, channels, height, width], video [batch, frames, channels, height, width].

    Height and width are those that the processor makes.
    """
    parts = [getattr(config, n, None) for n in ("vision_config", "backbone_config")]
    settings = [part for part in (*parts, config) if part is not None]
    channels = _number(settings, ("num_channels", "in_channels", "in_chans"), 3)
    sizes = [_extents(processor.get(name)) for name in ("crop_size", "size")]
    for part in settings:
        sizes += [_extents(getattr(part, name, None)) for name in ("image_size", "input_size")]
    frames = _number(settings, ("num_frames", "frames_per_clip"), 0)
    for height, width in dict.fromkeys((*filter(None, sizes), (224, 224), (64, 64))):
        yield {"pixel_values": _Input(_drawn(_BATCH, channels, height, width))}
        if frames:
            yield {"pixel_values": _Input(_drawn(_BATCH, frames, channels, height, width))}


def _extents(value: Any) -> tuple[int, int] | None:
    """Height and width of what settings call a size."""
    if isinstance(value, Mapping):
        found = (value.get("height"), value.get("width"))
        side = value.get("shortest_edge")
        value = found if None not in found else side
    if isinstance(value, int):
        value = (value, value)
    if isinstance(value, Sequence) and len(value) == 2:
        height, width = value
        if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0:
            return height, width
    return None


def _sounds(config: Any) -> Iterator[_Inputs]:
    """Samples [batch, samples] or [batch, channels, samples]; else the spectrogram of a size."""
    bins = getattr(config, "num_mel_bins", None)
    if isinstance(bins, int):
        frames = _number([config], ("max_length", "max_source_positions"), 1024)
        yield {"input_values": _Input(_drawn(_BATCH, frames, bins))}
    wave = _drawn(_BATCH, _SAMPLES) / 2
    yield {"input_values": _Input(wave, (0, 1))}
    channels = _number([config], ("audio_channels",), 1)
    yield {"input_values": _Input(wave[:, None].repeat(1, channels, 1), (0, 2))}


def _spectrograms(config: Any, processor: Mapping[str, Any]) -> Iterator[_Inputs]:
    """Features [batch, frames, bins], or [batch, bins, frames] as Whisper has them."""
    bins = _number([processor], ("num_mel_bins", "feature_size"), 0) or _number(
        [config], ("num_mel_bins", "feature_projection_input_dim", "input_feat_per_channel"), 80
    )
    stride = _number([processor], ("stride",), 1)
    places = getattr(config, "max_source_positions", None)
    if isinstance(places, int):  # the encoder has that many, and two frames make one
        yield {"input_features": _Input(_drawn(_BATCH, bins, 2 * places))}
    yield {"input_features": _Input(_drawn(_BATCH, _FRAMES, bins * stride), (0, 1))}
    yield {"input_features": _Input(_drawn(_BATCH, _FRAMES, bins), (0, 1))}
    yield {"input_features": _Input(_drawn(_BATCH, bins, _FRAMES), (0, 2))}


def _series(config: Any) -> Iterator[_Inputs]:
    """Values in the past [batch, steps, channels], or [batch, steps]."""
    steps = _number([config], ("context_length", "input_length", "context_len"), 64)
    channels = _number([config], ("num_input_channels", "input_size"), 1)
    yield {"past_values": _Input(_drawn(_BATCH, steps, channels))}
    yield {"past_values": _Input(_drawn(_BATCH, steps))}


def _number(places: Sequence[Any], names: Sequence[str], default: int) -> int:
    """The first positive integer of those names in settings."""
    for place in places:
        for name in names:
            value = place.get(name) if isinstance(place, Mapping) else getattr(place, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return default


def _processor(folder: Path) -> dict[str, Any]:
    """What the file of a picture's or sound's processor says, {} where there is none."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            try:
                return read_json_object(folder / name)
            except SourceError:
                continue  # it is copied as it is; nothing else reads it
    return {}


def _drawn(*shape: int) -> Tensor:
    if prod(shape) > _MOST:
        raise OptionError(
            f"settings ask for inputs of {list(shape)}, which is more than an example may have; "
            "correct preprocessor_config.json or config.json, or give --example inputs.pt"
        )
    return torch.randn(shape, generator=_seeded())


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
