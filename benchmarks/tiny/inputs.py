"""Example inputs of any model, found by its forward's argument names and by trying."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

__all__ = ["Inputs", "NoInputsError", "find_inputs", "fresh"]

TOKENS = 24
_FEATURES = re.compile(
    r"(image|video|audio|speech)?\s*features and .*?features:?\s*(\d+)", re.I | re.S
)
_IMAGE_IDS = ("image_token_id", "image_token_index", "media_placeholder_token_id", "image_id")
_AUDIO_IDS = ("audio_token_id", "audio_token_index", "speech_token_id", "audio_soft_token_id")


class NoInputsError(Exception):
    """No inputs were found that the model takes; the text is its first objection."""


@dataclass(frozen=True)
class Inputs:
    """Keyword arguments of forward.

    Attributes:
        values: by name.
        placeholders: number of image or audio tokens among input_ids, by token id.
        computed: names of values that follow from others, and are no input of a user's.
    """

    values: Mapping[str, Any]
    placeholders: Mapping[int, int]
    computed: frozenset[str] = frozenset()


def find_inputs(model: torch.nn.Module) -> tuple[Inputs, Any]:
    """The first inputs that the model runs on, and its outputs.

    Raises:
        NoInputsError: it takes none of those that were tried.
    """
    errors: list[str] = []
    for candidate in itertools.islice(_candidates(model), 60):
        outcome = _attempt(model, candidate)
        if not isinstance(outcome, str):
            return outcome
        errors.append(outcome)
    raise NoInputsError(errors[0] if errors else "forward takes no argument that is known here")


def _attempt(model: torch.nn.Module, inputs: Inputs) -> tuple[Inputs, Any] | str:
    """Run it; where the number of placeholders is objected to, with the number it asks for."""
    first = ""
    for _ in range(4):
        try:
            with torch.no_grad():
                return inputs, model(**inputs.values)
        except Exception as error:  # whatever a model has against its inputs
            text = f"{type(error).__name__}: {error}"
            first = text if not first or inputs.placeholders else first
            wanted = _FEATURES.search(str(error))
            if wanted is None or "input_ids" not in inputs.values:
                return text
            number = int(wanted[2])
            hidden = getattr(model.config.get_text_config(), "hidden_size", 0) or 0
            if number >= 512 and hidden and number % hidden == 0:
                number //= hidden
            kind = (wanted[1] or "image").lower()
            name = _placeholder(
                model.config, _AUDIO_IDS if kind in ("audio", "speech") else _IMAGE_IDS
            )
            if name is None or number > 2048 or inputs.placeholders.get(name) == number:
                return first
            inputs = _with_placeholders(inputs, {**inputs.placeholders, name: number})
    return first


def _placeholder(config: Any, names: tuple[str, ...]) -> int | None:
    for part in (config, config.get_text_config()):
        for name in names:
            value = getattr(part, name, None)
            if isinstance(value, int):
                return value
    return None


def _with_placeholders(inputs: Inputs, placeholders: Mapping[int, int]) -> Inputs:
    values = dict(inputs.values)
    inner = [token for token, number in placeholders.items() for _ in range(number)]
    ids = torch.cat([_ids(1, 4, 0), torch.tensor([inner], dtype=torch.long), _ids(1, 12, 1)], 1)
    values["input_ids"] = ids
    for name in ("attention_mask", "decoder_attention_mask"):
        if name in values:
            values[name] = torch.ones_like(ids)
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in values:
            values[name] = sum(((ids == t).long() for t in placeholders), torch.zeros_like(ids))
    return replace(inputs, values=values, placeholders=placeholders)


def _ids(batch: int, length: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(8, 128, (batch, length), generator=generator)


def fresh(inputs: Inputs, seed: int) -> dict[str, Any]:
    """Other values of the same kind: text but for placeholders, pixels, waves, features."""
    generator = torch.Generator().manual_seed(seed)
    values: dict[str, Any] = {}
    for name, value in inputs.values.items():
        if not isinstance(value, torch.Tensor) or name in inputs.computed:
            values[name] = value
        elif value.is_floating_point() and not bool((value == value.round()).all()):
            values[name] = torch.randn(value.shape, generator=generator)
        elif name in ("input_ids", "decoder_input_ids"):
            placed = torch.tensor([*inputs.placeholders], dtype=torch.long)
            kept = torch.isin(value, placed)
            pool = value[~kept].unique()
            drawn = pool[torch.randint(len(pool), value.shape, generator=generator)]
            values[name] = torch.where(kept, value, drawn)
        else:
            values[name] = value
    return values


def _candidates(model: torch.nn.Module) -> Iterator[Inputs]:
    """What the forward may take, the simplest first."""
    taken = inspect.signature(model.forward).parameters
    config = model.config
    groups: list[list[dict[str, Any]]] = []
    if "input_ids" in taken:
        groups.append(_texts(taken, config))
    images = [n for n in ("pixel_values", "pixel_values_images", "images") if n in taken]
    if images:
        groups.append([_named(images[0], f, taken, config) for f in _images(config, taken)])
    elif "pixel_values_videos" in taken:
        name = "pixel_values_videos"
        groups.append([_named(name, f, taken, config) for f in _images(config, taken)])
    if "input_features" in taken:
        groups.append(list(_features(config, taken)))
    elif "input_values" in taken or "audio_values" in taken:
        name = "input_values" if "input_values" in taken else "audio_values"
        groups.append(list(_waves(name, taken)))
    if "decoder_input_ids" in taken:
        groups.append([{"decoder_input_ids": _ids(1, 16, 7)}])
    if "hidden_states" in taken and not groups:
        groups.append(list(_patches(config, taken)))
    if "past_values" in taken:
        groups.append(list(_series(config, taken)))
    if not groups:
        groups.append(list(_others(model, taken)))
    for choice in itertools.product(*reversed(groups)):
        values: dict[str, Any] = {}
        for part in choice:
            values.update(part)
        yield Inputs(values, {})


def _texts(taken: Mapping[str, Any], config: Any) -> list[dict[str, Any]]:
    """Token ids, alone and with what layout models ask for."""
    parts = [p for n in ("text_config",) if (p := getattr(config, n, None)) is not None] + [config]
    size = _number(parts, ("vocab_size",), 128)
    tokens = min(TOKENS, _number(parts, ("max_position_embeddings",), TOKENS))
    ids = _ids(1, tokens, 3) % (min(size, 128) - 4) + 2
    plain: dict[str, Any] = {"input_ids": ids}
    box = torch.arange(tokens)[None, :, None].repeat(1, 1, 4) * 3 + torch.tensor([0, 0, 20, 30])
    options = [plain]
    if "bbox" in taken:
        options = [{**plain, "bbox": box}, {**plain, "bbox": box.float() / 1000 + 0.011}]
        options.append({**plain, "bbox": torch.rand(1, tokens, 8)})
    elif "token_type_ids" in taken and "mm_token_type_ids" not in taken:
        options.append({**plain, "token_type_ids": torch.zeros_like(ids)})
    if "mm_token_type_ids" in taken:
        options.append({**plain, "mm_token_type_ids": torch.zeros_like(ids)})
        if "token_type_ids" in taken:
            options.append({**plain, "token_type_ids": torch.zeros_like(ids)})
    options.append({**plain, "attention_mask": torch.ones_like(ids)})
    codebooks = getattr(config, "num_codebooks", None) or getattr(config, "n_codes_total", None)
    if isinstance(codebooks, int):
        several = torch.randint(0, 32, (1, TOKENS, codebooks))
        options += [{"input_ids": several}, {"input_ids": several[0].T.contiguous()}]
    return options


def _vision(config: Any) -> list[Any]:
    names = ("vision_config", "vision_tower_config", "vit_config", "encoder", "backbone_config")
    parts = [getattr(config, n, None) for n in names]
    thinker = getattr(config, "thinker_config", None)
    if thinker is not None:
        parts.append(getattr(thinker, "vision_config", None))
    return [p for p in parts if p is not None and not isinstance(p, dict)] + [config]


def _number(parts: list[Any], names: tuple[str, ...], default: int) -> int:
    for part in parts:
        for name in names:
            value = getattr(part, name, None)
            if isinstance(value, list | tuple) and value:
                value = value[0]
            if isinstance(value, dict):
                value = value.get("height")
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return default


def _images(config: Any, taken: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Pixels in the layouts that transformers has; the key "" stands for the argument's name."""
    parts = _vision(config)
    channels = _number(parts, ("num_channels", "in_channels", "in_chans", "n_channels"), 3)
    size = _number(parts, ("image_size", "img_size", "input_size"), 64)
    patch = _number(parts, ("patch_size", "spatial_patch_size"), 16)
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    temporal = _number(parts, ("temporal_patch_size",), 1)
    grid = next((n for n in ("image_grid_thw", "grid_thw", "image_grid_hw") if n in taken), None)
    merge = _number(parts, ("spatial_merge_size", "merge_size"), 2)
    side = 2 * max(merge, 2)
    flat = draw(side * side, channels * temporal * patch * patch)
    if grid:
        thw = torch.tensor([[1, side, side]] if "thw" in grid else [[side, side]])
        yield {"": flat, grid: thw}
        yield {"": flat[None], grid: thw}
        yield {"": draw(side * side, channels, patch, patch), grid: thw}
    if "spatial_shapes" in taken:
        mask = "pixel_attention_mask" if "pixel_attention_mask" in taken else "attention_mask"
        shapes = {
            "spatial_shapes": torch.tensor([[4, 4]]),
            mask: torch.ones(1, 16, dtype=torch.long),
        }
        yield {"": draw(1, 16, channels * patch * patch), **shapes}
    if "image_position_ids" in taken or "pixel_position_ids" in taken:
        name = "image_position_ids" if "image_position_ids" in taken else "pixel_position_ids"
        rows = torch.stack(torch.meshgrid(*[torch.arange(side)] * 2, indexing="xy"), -1)
        yield {"": draw(1, side * side, channels * patch * patch), name: rows.reshape(1, -1, 2)}
    if "image_sizes" in taken:
        sizes = torch.tensor([[size, size]])
        yield {"": draw(1, channels, size, size), "image_sizes": sizes}
        for tiles in (2, 3, 5):
            yield {"": draw(1, tiles, channels, size, size), "image_sizes": sizes}
    if "aspect_ratio_ids" in taken:
        tiles = _number(parts, ("max_num_tiles",), 4)
        yield {
            "": draw(1, 1, tiles, channels, size, size),
            "aspect_ratio_ids": torch.ones(1, 1, dtype=torch.long),
            "aspect_ratio_mask": torch.ones(1, 1, tiles, dtype=torch.long),
            "cross_attention_mask": torch.ones(1, TOKENS, 1, tiles, dtype=torch.long),
        }
    for extent in dict.fromkeys((size, 64, 128, 224, 32)):
        image = draw(1, channels, extent, extent)
        yield {"": image}
        if "pixel_mask" in taken:
            yield {"": image, "pixel_mask": torch.ones(1, extent, extent, dtype=torch.long)}
        if extent == size:
            yield {"": image[None]}
            frames = _number(parts, ("num_frames", "frames_per_clip"), 2)
            yield {"": draw(1, frames, channels, extent, extent)}
            yield {"": draw(1, channels, 16, extent, extent)}
            yield {"": draw(1, 2, channels, extent, extent)}
            yield {"": image[:, None, None]}
    yield {"": flat}
    yield {"": flat[None]}


def _named(
    name: str, found: Mapping[str, Any], taken: Mapping[str, Any], config: Any
) -> dict[str, Any]:
    values = {key or name: value for key, value in found.items()}
    height = next((v.shape[-2:] for v in found.values() if v.ndim >= 4), torch.Size([64, 64]))
    for prompt, value in (
        ("qformer_input_ids", _ids(1, 8, 9)),
        ("flattened_patches", torch.randn(1, 16, 770)),
        ("prompt_pixel_values", torch.randn(1, 3, *height)),
        ("prompt_masks", torch.randn(1, 3, *height)),
        ("merge_sizes", torch.tensor([2])),
        ("input_points", torch.tensor([[[[20.0, 30.0]]]])),
        ("task_inputs", torch.randint(8, 128, (1, 77))),
    ):
        if prompt in taken:
            values[prompt] = value
    if "noise" in taken:  # by which masked autoencoders choose patches; else they draw it
        patch = _number([config], ("patch_size",), 16)
        values["noise"] = torch.rand(1, (height[0] // patch) * (height[1] // patch))
    return values


def _features(config: Any, taken: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Spectrograms: mel bins first or last, of the lengths that encoders take."""
    names = ("audio_config", "encoder_config", "speech_config", "audio_encoder_config", "encoder")
    parts = [p for n in names if (p := getattr(config, n, None)) is not None] + [config]
    thinker = getattr(config, "thinker_config", None)
    if thinker is not None and getattr(thinker, "audio_config", None) is not None:
        parts.insert(0, thinker.audio_config)
    bins = _number(
        parts,
        ("num_mel_bins", "n_mels", "input_feat_per_channel", "feature_size", "input_dim",
         "feature_projection_input_dim", "num_mel_filters", "input_feat_size", "input_channels"),
        80,
    )  # fmt: skip
    positions = _number(parts, ("max_source_positions", "max_position_embeddings"), 64)
    masks = [n for n in ("input_features_mask", "feature_attention_mask") if n in taken]
    if "noise_sequence" in taken:  # drawn at random where it is not given
        noise = torch.randn(1, 64, _number(parts, ("model_in_channels",), 64))
        yield {"input_features": torch.randn(1, 64, bins), "noise_sequence": noise}
    for length in dict.fromkeys((2 * positions, 64, 96, 100, 256, 3000)):
        if length > 3000:
            continue
        first, last = torch.randn(1, bins, length), torch.randn(1, length, bins)
        for value in (first, last, first[:, None], last[:, None], last[0], first[0]):
            yield {"input_features": value}
            for mask in masks:
                yield {"input_features": value, mask: torch.ones(1, length, dtype=torch.long)}


def _waves(name: str, taken: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Samples [batch, time] or [batch, channels, time]; spectrograms of classifiers."""
    for length in (2000, 4000, 16000):
        wave = torch.randn(1, length) * 0.5
        yield {name: wave}
        yield {name: wave[:, None]}
        if "padding_mask" in taken:
            yield {name: wave[:, None], "padding_mask": torch.ones(1, length, dtype=torch.bool)}
    yield {name: torch.randn(1, 1024, 128)}
    yield {name: torch.randn(1, 64, 80)}


def _patches(config: Any, taken: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Vision towers that take rows of pixels of patches, and towers of hidden states."""
    for found in _images(config, taken):
        if len(found) > 1:
            yield {key or "hidden_states": value for key, value in found.items()}
    width = _number([config], ("hidden_size", "d_model"), 64)
    yield {"hidden_states": torch.randn(1, TOKENS, width)}


def _series(config: Any, taken: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Values in the past with what time-series models ask for."""
    length = _number([config], ("context_length", "input_length", "context_len"), 64)
    lags = max(getattr(config, "lags_sequence", None) or [0])
    channels = _number([config], ("num_input_channels", "input_size"), 1)
    total = length + lags
    wide = torch.randn(1, total, channels)
    yield {"past_values": wide}
    for past in (wide, wide[..., 0]):
        values: dict[str, Any] = {"past_values": past}
        if "past_time_features" in taken:
            features = getattr(config, "num_time_features", 0)
            extra = getattr(config, "num_dynamic_real_features", 0)
            values["past_time_features"] = torch.randn(1, total, features + extra)
        if "past_observed_mask" in taken:
            values["past_observed_mask"] = torch.ones_like(past)
        yield values
    yield {"past_values": [torch.randn(length)], "freq": [0]}


def _others(model: torch.nn.Module, taken: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """By the name of the main input, else by required arguments."""
    width = _number([model.config], ("hidden_size", "d_model", "embed_dim"), 64)
    name = getattr(model, "main_input_name", "")
    required = [
        n
        for n, p in taken.items()
        if p.default is inspect.Parameter.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    names = [n for n in dict.fromkeys([name, *required]) if n in taken]
    for values in (
        torch.randn(1, TOKENS, width),
        torch.randn(1, width, TOKENS),
        torch.randint(0, 32, (1, TOKENS)),
        torch.randint(0, 32, (1, 4, TOKENS)),
        torch.randn(1, 3, 64, 64),
        torch.randn(1, 1, 2000),
    ):
        yield dict.fromkeys(names, values)
