"""FastSpeech 2 with Conformers (Ren et al., 2021) as transformers has it, with or without HiFi-GAN.

Before:  spectrogram = model(input_ids)
After:   rows, durations, pitch, energy = encode(input_ids, mask)
         spectrogram = decode(rows, each as often as its duration says)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from torch2mlx.compiler.entry_points import EntryPoint
from torch2mlx.compiler.host import Call, Host
from torch2mlx.compiler.runtime.speech import FastSpeech2Synthesis
from torch2mlx.compiler.speech.parts import SpeechParts, check_frames

__all__ = ["FastSpeech2", "fastspeech2_parts"]

_CLEAR = 1e-3  # frames from where a duration rounds the other way


class FastSpeech2(nn.Module):
    """What the model computes where lengths are given.

    Args:
        model: transformers' `FastSpeech2ConformerModel`, or the one with a HiFi-GAN.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = getattr(model, "model", model)
        self.vocoder = getattr(model, "vocoder", None)

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        speaker_ids: Tensor | None = None,
        lang_ids: Tensor | None = None,
        speaker_embedding: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """By name: `rows` [batch, length, size], `durations`, `pitch` and `energy` of the tokens.

        Args:
            input_ids: [batch, length].
            attention_mask: 1 where a token is no padding.
            speaker_ids: [batch].
            lang_ids: [batch].
            speaker_embedding: [batch, size].
        """
        rows: list[Tensor] = []

        def regulator(encoded: Tensor, durations: Tensor, speed: float) -> Tensor:
            rows.append(encoded)
            return encoded

        with _regulated(regulator):
            found = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                speaker_ids=speaker_ids,
                lang_ids=lang_ids,
                speaker_embedding=speaker_embedding,
                return_dict=True,
            )
        return {
            "rows": rows[0],
            "durations": found.duration_outputs,
            "pitch": found.pitch_outputs,
            "energy": found.energy_outputs,
        }

    def decode(self, rows: Tensor) -> dict[str, Tensor]:
        """By name: `spectrogram`, and `waveform` where there is a vocoder.

        Args:
            rows: [batch, frames, size].
        """
        decoded = self.model.decoder(rows, None, return_dict=True).last_hidden_state
        _, spectrogram = self.model.speech_decoder_postnet(decoded)
        if self.vocoder is None:
            return {"spectrogram": spectrogram}
        return {"waveform": self.vocoder(spectrogram), "spectrogram": spectrogram}


@contextmanager
def _regulated(regulator: Callable[..., Tensor]) -> Iterator[None]:
    """While it lasts, this stands for the length regulator."""
    from transformers.models.fastspeech2_conformer import modeling_fastspeech2_conformer

    modeling: Any = modeling_fastspeech2_conformer
    original = modeling.length_regulator
    modeling.length_regulator = regulator
    try:
        yield
    finally:
        modeling.length_regulator = original


def fastspeech2_parts(model: Any) -> SpeechParts:
    """The module whose methods are compiled, their examples, and what joins them.

    Args:
        model: transformers' `FastSpeech2ConformerModel`, or the one with a HiFi-GAN, in float32.
    """
    module = FastSpeech2(model).eval()
    config = module.model.config
    generator = torch.Generator().manual_seed(0)
    example = _arguments(config, 2, 11, 3, generator)
    host = Host(
        FastSpeech2Synthesis,
        {
            "conditions": tuple(name for name in example if name in _conditions(config, 1)),
            "speaking_speed": float(config.speaking_speed),
        },
        (
            Call("7 tokens", _clear(module, 1, 7, 0, generator)),
            Call("12 tokens and 9 with padding", _clear(module, 2, 12, 3, generator)),
            Call("19 tokens", _clear(module, 1, 19, 0, generator)),
        ),
        lambda **arguments: _original(model, arguments),
    )
    auto = torch.export.Dim.AUTO
    tokens = {name: {0: auto, 1: auto} for name in ("input_ids", "attention_mask")}
    others = {name: {0: auto} for name in example if name not in tokens}
    rows = torch.randn(2, 23, config.hidden_size)
    points = (
        EntryPoint("encode", (), example, {**tokens, **others}),
        EntryPoint("decode", (), {"rows": rows}, {"rows": {0: auto, 1: auto}}),
    )
    return SpeechParts(module, points, host)


def _conditions(config: Any, batch: int) -> dict[str, Tensor]:
    """Who speaks, and in which language, where the model has a choice."""
    given: dict[str, Tensor] = {}
    if config.num_speakers is not None and config.num_speakers > 1:
        given["speaker_ids"] = torch.arange(batch) % config.num_speakers
    if config.num_languages is not None and config.num_languages > 1:
        given["lang_ids"] = (torch.arange(batch) + 1) % config.num_languages
    if config.speaker_embed_dim:
        embedding = torch.linspace(-1, 1, batch * config.speaker_embed_dim)
        given["speaker_embedding"] = embedding.reshape(batch, -1)
    return given


def _arguments(
    config: Any, batch: int, length: int, padding: int, generator: torch.Generator
) -> dict[str, Tensor]:
    ids = torch.randint(1, config.vocab_size, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    ids[-1, length - padding :] = mask[-1, length - padding :] = 0
    return {"input_ids": ids, "attention_mask": mask, **_conditions(config, batch)}


def _clear(
    module: FastSpeech2, batch: int, length: int, padding: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Arguments whose durations round clearly: drawn anew where one is near a half."""
    seen: list[Tensor] = []
    linear = module.model.duration_predictor.linear
    hook = linear.register_forward_hook(lambda _module, _args, output: seen.append(output))
    try:
        for _ in range(100):
            arguments = _arguments(module.model.config, batch, length, padding, generator)
            with torch.no_grad():
                durations = module.encode(**arguments)["durations"]
            check_frames(length, int(durations.sum(1).max()))
            frames = seen.pop().exp()
            if bool(((frames - frames.floor() - 0.5).abs() > _CLEAR).all()):
                break
    finally:
        hook.remove()
    return arguments


def _original(model: Any, arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    """What transformers' own `forward` gives."""
    found = model(**arguments, return_dict=True)
    names = ("spectrogram", "duration_outputs", "pitch_outputs", "energy_outputs")
    sound = {} if getattr(model, "vocoder", None) is None else {"waveform": found["waveform"]}
    return sound | {name: found[name] for name in names}
