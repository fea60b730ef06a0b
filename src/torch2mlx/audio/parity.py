"""Kokoro in mlx-audio beside the original, stage by stage.

Noise is left out on both sides.  Each stage gets PyTorch's input, because two of them magnify
rounding: durations are rounded, and the sign of a rounding error decides whether the phase of a
harmonic spectrum is π or -π.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from torch2mlx.audio.kokoro import Kokoro
from torch2mlx.audio.libraries import read_voice
from torch2mlx.compiler.parity.distance import relative_error
from torch2mlx.compiler.parity.running import mlx_array
from torch2mlx.errors import ParityError, UnsupportedError
from torch2mlx.evidence.record import OutputRecord

__all__ = ["Comparison", "compare"]

_LIMITS = {
    # The sum over all samples of a frequency is a phase in float32: thousands of radians.
    "source": 1e-3,
}
_LIMIT = 1e-4
_LENGTHS = (4, 9, 17)  # phonemes of the texts; the first is made into sound
_CLEAR = 1e-3  # frames from where a duration rounds the other way


@dataclass(frozen=True)
class Comparison:
    """What was compared.

    Attributes:
        records: every stage of every text, with the port as it ought to be.
        deviations: what mlx-audio's port itself does otherwise than PyTorch, with figures.
    """

    records: tuple[OutputRecord, ...]
    deviations: tuple[str, ...]

    @property
    def worst(self) -> float:
        """Largest relative L2 error."""
        return max(r.relative for r in self.records if r.relative is not None)


def compare(kokoro: Kokoro, original: Any, port: Any) -> Comparison:
    """Run both on texts of several lengths, of which the shortest is made into sound.

    Args:
        kokoro: the release.
        original: from `load_original`.
        port: from `load_port`.

    Raises:
        ParityError: a stage differs although what mlx-audio is known to do otherwise was mended.
        UnsupportedError: there is no text on which to compare.
    """
    generator = torch.Generator().manual_seed(0)
    voice = read_voice(next(iter(kokoro.voices.values())))
    texts = [
        _text(original, voice, length, sound=length == _LENGTHS[0], generator=generator)
        for length in _LENGTHS
        if length + 2 <= original.context_length
    ]
    if not texts:
        raise UnsupportedError(
            f"{kokoro.folder}: texts have {original.context_length} tokens at most; {_LENGTHS[0]} "
            "phonemes and two ends are needed for a comparison"
        )
    as_is = [_distances(port, text) for text in texts]
    with _mended(port, original.bert.config.hidden_act):
        mended = [_distances(port, text) for text in texts]
    records = []
    for text, distances in zip(texts, mended, strict=True):
        for stage, distance in distances.items():
            limit = _LIMITS.get(stage, _LIMIT)
            if not distance <= limit:
                raise ParityError(
                    f"{text.name}: {stage} of mlx-audio's port differs from PyTorch: relative L2 "
                    f"error {distance:.2e}, limit {limit:.0e}; nothing was written"
                )
            shape = tuple(text.stages[stage].shape)
            records.append(OutputRecord(text.name, stage, shape, "float32", distance, limit))
    return Comparison(tuple(records), tuple(_deviations(as_is)))


@dataclass(frozen=True, eq=False)
class _Text:
    """A text and what PyTorch makes of it.

    Attributes:
        name: for messages.
        phonemes: of the vocabulary.
        style: [1, 256].
        durations: frames of each phoneme, with one more at both ends.
        stages: tensors by name.
        inputs: of the stages that get PyTorch's own.
    """

    name: str
    phonemes: str
    style: Tensor
    durations: Tensor
    stages: Mapping[str, Tensor]
    inputs: Mapping[str, Any] = field(default_factory=dict)


def _text(
    original: Any, voice: Tensor, length: int, sound: bool, generator: torch.Generator
) -> _Text:
    """Phonemes whose durations round clearly, and what the original makes of them."""
    known = sorted(p for p in original.vocab if len(p) == 1)
    if not known:
        raise UnsupportedError("vocab of config.json has no phoneme of one character")
    style = voice[min(length, len(voice)) - 1]
    for _ in range(100):
        drawn = torch.randint(0, len(known), (length,), generator=generator)
        phonemes = "".join(known[int(i)] for i in drawn)
        seen = _run_original(original, phonemes, style, sound)
        frames = torch.sigmoid(seen["duration_proj"]).sum(-1)
        if bool(((frames - frames.floor() - 0.5).abs() > _CLEAR).all()):
            break
    asr, pitch, energy, timbre = seen["decoder"]
    stages = {"durations": seen["durations"], "text": asr, "pitch": pitch, "energy": energy}
    inputs: dict[str, Any] = {}
    if sound:
        module = original.decoder.generator
        source = seen["source"].transpose(1, 2).squeeze(1)
        magnitude, phase = module.stft.transform(source)
        stages |= {"source": seen["source"], "sound": seen["sound"].reshape(-1)}
        stages["spectrum"] = torch.view_as_real(torch.polar(magnitude, phase))
        inputs = {
            "decoder": (asr, pitch, energy, timbre),
            "upsampled": seen["upsampled"],
            "source": source,
            "harmonics": (magnitude, phase),
        }
    name = f"{length} phonemes" + (", as sound" if sound else "")
    return _Text(name, phonemes, style, seen["durations"], stages, inputs)


def _run_original(original: Any, phonemes: str, style: Tensor, sound: bool) -> dict[str, Any]:
    """What hooks see while the original runs without noise; to its decoder, or all through."""
    seen: dict[str, Any] = {}
    generator = original.decoder.generator

    def decoder(module: Any, args: Any) -> None:
        seen["decoder"] = tuple(a.clone() for a in args)
        if not sound:
            raise _EnoughError

    def source(module: Any, args: Any, outputs: Any) -> None:
        seen["upsampled"], seen["source"] = args[0].clone(), outputs[0]

    def durations(module: Any, args: Any, output: Any) -> None:
        seen["duration_proj"] = output

    def last(module: Any, args: Any, output: Any) -> None:
        seen["sound"] = output

    hooks = [
        original.predictor.duration_proj.register_forward_hook(durations),
        original.decoder.register_forward_pre_hook(decoder),
        generator.m_source.register_forward_hook(source),
        original.decoder.register_forward_hook(last),
    ]
    try:
        with torch.no_grad(), _Silent():
            original(phonemes, style)
    except _EnoughError:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    frames = torch.sigmoid(seen["duration_proj"]).sum(-1)
    seen["durations"] = torch.round(frames).clamp(min=1).long().reshape(-1)
    return seen


class _EnoughError(Exception):
    """Ends a run of the original before its decoder."""


class _Silent(TorchFunctionMode):
    """While it lasts, torch draws zeros."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.rand:
            return torch.zeros(*args)
        if func is torch.randn_like:
            return torch.zeros_like(args[0])
        return func(*args, **(kwargs or {}))


@contextmanager
def _silent() -> Iterator[None]:
    """While it lasts, MLX draws zeros."""
    import mlx.core as mx

    drawing: Any = mx.random
    uniform, normal = drawing.uniform, drawing.normal
    drawing.uniform = lambda *args, shape, **kwargs: mx.zeros(shape)
    drawing.normal = lambda shape, *args, **kwargs: mx.zeros(shape)
    try:
        yield
    finally:
        drawing.uniform, drawing.normal = uniform, normal


def _distances(port: Any, text: _Text) -> dict[str, float]:
    """Relative L2 error by stage; infinite for all that follows other durations."""
    import mlx.core as mx

    seen: list[Any] = []

    def stopped(*args: Any) -> Any:
        seen.extend(args)
        return [mx.zeros((1, 1))]

    decoder = port.decoder
    with _silent(), _replaced(port, "decoder", stopped):
        made = port(text.phonemes, mlx_array(text.style), return_output=True)
    expected = text.durations.tolist()
    found = [int(n) for n in made.pred_dur]
    distances = {
        "durations": sum(a != b for a, b in zip(expected, found, strict=True)) / len(found)
    }
    for name, value in zip(("text", "pitch", "energy"), seen, strict=False):
        distances[name] = relative_error(text.stages[name], value)
    if "sound" not in text.stages:
        return distances
    generator = decoder.generator
    with _silent():
        source = generator.m_source(mlx_array(text.inputs["upsampled"]))[0]
        distances["source"] = relative_error(text.stages["source"], source)
        given = mlx_array(text.inputs["source"])
        magnitude, phase = generator.stft.transform(given)
        spectrum = mx.stack([magnitude * mx.cos(phase), magnitude * mx.sin(phase)], axis=-1)
        distances["spectrum"] = relative_error(text.stages["spectrum"], spectrum)
        harmonics = tuple(mlx_array(part) for part in text.inputs["harmonics"])
        with _replaced(generator.stft, "transform", lambda _: harmonics):
            sound = decoder(*(mlx_array(value) for value in text.inputs["decoder"]))
        distances["sound"] = relative_error(text.stages["sound"], sound.reshape(-1))
    return distances


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    own = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, own)


@contextmanager
def _mended(port: Any, activation: str) -> Iterator[None]:
    """The port without what it does otherwise than PyTorch: GELU, and padding by reflection."""
    import mlx.core as mx
    import mlx.nn

    layers_of: Any = mlx.nn

    def reflected(x: Any) -> Any:
        return mx.concatenate([x[:, :, 1:2], x], axis=2)

    layers = [
        layer for group in port.bert.encoder.albert_layer_groups for layer in group.albert_layers
    ]
    with ExitStack() as stack:
        stack.enter_context(_replaced(port.decoder.generator, "reflection_pad", reflected))
        for layer in layers if activation == "gelu_new" else ():
            stack.enter_context(_replaced(layer, "activation", layers_of.GELU(approx="precise")))
        yield


def _deviations(as_is: list[dict[str, float]]) -> Iterator[str]:
    """What the port itself does otherwise, in words, where it shows."""
    from importlib.metadata import version

    port = f"mlx-audio {version('mlx-audio')}"
    other = max(d["durations"] for d in as_is)
    before = [d[n] for d in as_is if not d["durations"] for n in ("text", "pitch", "energy")]
    worst = max(before, default=0.0)
    if other or worst > _LIMIT:
        lengths = (
            f"; up to {100 * other:.0f} % of a text's phonemes get another length" if other else ""
        )
        yield (
            f"{port} has the exact GELU where Kokoro's BERT has its tanh form: what the decoder "
            f"gets is {worst:.1e} from PyTorch's{lengths}"
        )
    sound = max(d["sound"] for d in as_is if "sound" in d)
    if sound > _LIMIT:
        yield (
            f"{port} pads with zeros where Kokoro reflects, before the last upsampling: the sound "
            f"of the shortest text is {sound:.1e} from PyTorch's"
        )
