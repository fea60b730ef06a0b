"""VITS (Kim et al., 2021) as transformers has it: what is before and after the durations.

Before:  sound = model(input_ids)              with noise drawn inside
After:   durations, latents' means and log deviations = encode(input_ids, mask, noise)
         spectrogram, sound = decode(latents, mask)
         `VitsSynthesis` rounds durations up and makes as many latents between them
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from torch2mlx.compiler.entry_points import EntryPoint
from torch2mlx.compiler.host import Call, Host
from torch2mlx.compiler.runtime.speech import VitsSynthesis
from torch2mlx.compiler.speech.parts import SpeechParts, check_frames

__all__ = ["Vits", "vits_parts"]

_CLEAR = 1e-3  # frames: a duration that is nearer to a whole number may round otherwise in MLX
_FRAMES = 5  # of an example's latents: each is hundreds of samples, and whole texts have more


class Vits(nn.Module):
    """What VITS computes where lengths are given.

    Args:
        model: transformers' `VitsModel`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        noise: Tensor | None = None,
        speaker: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logarithms of durations [batch, length]; means and log deviations of the latents.

        Args:
            input_ids: [batch, length].
            attention_mask: 1 where a token is no padding.
            noise: of the durations, scaled [batch, 2, length]; None where they are not drawn.
            speaker: its number [1].
        """
        model = self.model
        padding = attention_mask[..., None].float()
        encoded = model.text_encoder(
            input_ids=input_ids,
            padding_mask=padding,
            attention_mask=attention_mask,
            return_dict=True,
        )
        hidden, padding = encoded.last_hidden_state.transpose(1, 2), padding.transpose(1, 2)
        voice = self._voice(speaker)
        if noise is None:
            durations = model.duration_predictor(hidden, padding, voice)
        else:
            with _without_masks(), _Drawn(noise):
                durations = model.duration_predictor(
                    hidden, padding, voice, reverse=True, noise_scale=1.0
                )
        return durations[:, 0], encoded.prior_means, encoded.prior_log_variances

    def decode(
        self, latents: Tensor, mask: Tensor, speaker: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Spectrogram and sound of latents.

        Args:
            latents: [batch, size, frames].
            mask: 1 where a frame is no padding [batch, frames].
            speaker: its number [1].
        """
        voice = self._voice(speaker)
        padding = mask[:, None]
        spectrogram = self.model.flow(latents, padding, voice, reverse=True) * padding
        return spectrogram, self.model.decoder(spectrogram, voice)[:, 0]

    def _voice(self, speaker: Tensor | None) -> Tensor | None:
        return None if speaker is None else self.model.embed_speaker(speaker)[..., None]


class _Drawn(TorchFunctionMode):
    """While it lasts, torch draws these from the normal distribution, and zeros after them."""

    def __init__(self, *draws: Tensor) -> None:
        super().__init__()
        self.draws = list(draws)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.randn:
            return self.draws.pop(0) if self.draws else torch.zeros(args)
        if func is torch.randn_like:
            drawn = self.draws.pop(0) if self.draws else torch.zeros_like(args[0])
            return drawn[..., : args[0].shape[-1]]
        return func(*args, **(kwargs or {}))


@contextmanager
def _without_masks() -> Iterator[None]:
    """Splines that are computed everywhere and taken where they hold, so that no size is data."""
    from transformers.models.vits import modeling_vits

    modeling: Any = modeling_vits
    original = modeling._unconstrained_rational_quadratic_spline

    def spline(
        inputs: Tensor,
        widths: Tensor,
        heights: Tensor,
        derivatives: Tensor,
        reverse: bool,
        tail_bound: float,
    ) -> tuple[Tensor, Tensor]:
        least = 1e-3  # of widths, heights and derivatives, as the original has it
        edge = math.log(math.exp(1 - least) - 1)
        inside = (inputs >= -tail_bound) & (inputs <= tail_bound)
        outputs, log_determinant = modeling._rational_quadratic_spline(
            inputs.clamp(-tail_bound, tail_bound),
            widths,
            heights,
            nn.functional.pad(derivatives, (1, 1), value=edge),
            reverse,
            tail_bound,
            least,
            least,
            least,
        )
        unchanged = torch.zeros_like(log_determinant)
        return (
            torch.where(inside, outputs, inputs),
            torch.where(inside, log_determinant, unchanged),
        )

    modeling._unconstrained_rational_quadratic_spline = spline
    try:
        yield
    finally:
        modeling._unconstrained_rational_quadratic_spline = original


def vits_parts(model: Any) -> SpeechParts:
    """The module whose methods are compiled, their examples, and what joins them.

    Args:
        model: transformers' `VitsModel`, in float32.
    """
    module = Vits(model).eval()
    config = model.config
    host = Host(
        VitsSynthesis,
        {
            "sampling_rate": config.sampling_rate,
            "speakers": config.num_speakers,
            "latent_size": config.flow_size,
            "samples_per_frame": math.prod(config.upsample_rates),
            "draws_durations": bool(config.use_stochastic_duration_prediction),
            "speaking_rate": float(config.speaking_rate),
            "noise_scale": float(config.noise_scale),
            "noise_scale_duration": float(config.noise_scale_duration),
        },
        _calls(module),
        lambda **arguments: _original(model, **arguments),
    )
    note = "posterior_encoder and what else only training uses was left out"
    return SpeechParts(module, _points(config), host, (note,))


def _points(config: Any) -> tuple[EntryPoint, ...]:
    auto = torch.export.Dim.AUTO
    frames = torch.export.Dim("frames", min=2, max=1 << 24)
    ids = torch.randint(0, config.vocab_size, (2, 11))
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    encode: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    decode: dict[str, Any] = {
        "latents": torch.randn(2, config.flow_size, _FRAMES),
        "mask": torch.ones(2, _FRAMES),
    }
    tokens: dict[str, Any] = {name: {0: auto, 1: auto} for name in encode}
    latents: dict[str, Any] = {"latents": {0: auto, 2: frames}, "mask": {0: auto, 1: frames}}
    if config.use_stochastic_duration_prediction:
        encode["noise"] = torch.randn(2, 2, 11)
        tokens["noise"] = {0: auto, 2: auto}
    if config.num_speakers > 1:
        encode["speaker"] = decode["speaker"] = torch.tensor([config.num_speakers - 1])
        tokens["speaker"] = latents["speaker"] = {}
    return (
        EntryPoint("encode", (), encode, tokens),
        EntryPoint("decode", (), decode, latents),
    )


def _calls(module: Vits) -> tuple[Call, ...]:
    """Texts of several lengths, with noise and without, of several speakers."""
    generator = torch.Generator().manual_seed(0)
    last = module.model.config.num_speakers - 1
    quiet: dict[str, Any] = {"noise_scale": 0.0, "noise_scale_duration": 0.0}
    return (
        _call("7 tokens without noise", module, generator, (1, 7), **quiet),
        _call("12 tokens and 9 with padding", module, generator, (2, 12), padding=3, speaker=last),
        _call("19 tokens, spoken faster", module, generator, (1, 19), speaking_rate=1.3),
    )


def _call(
    name: str,
    module: Vits,
    generator: torch.Generator,
    shape: tuple[int, int],
    padding: int = 0,
    speaker: int = 0,
    **settings: Any,
) -> Call:
    """Arguments whose durations round clearly: drawn anew where one is near a whole number."""
    config = module.model.config
    for _ in range(100):
        arguments: dict[str, Any] = dict(settings)
        ids = torch.randint(0, config.vocab_size, shape, generator=generator)
        mask = torch.ones_like(ids)
        mask[-1, shape[1] - padding :] = 0
        arguments |= {"input_ids": ids, "attention_mask": mask}
        arguments["duration_noise"] = torch.randn(shape[0], 2, shape[1], generator=generator)
        if config.num_speakers > 1:
            arguments["speaker_id"] = speaker
        frames = _frames(module, arguments)
        if bool(((frames - frames.round()).abs() > _CLEAR)[mask.bool()].all()):
            break
    longest = max(1, int((frames.ceil() * mask).sum(1).max()))
    check_frames(shape[1], longest)
    noise = torch.randn(shape[0], config.flow_size, longest, generator=generator)
    if settings.get("noise_scale") == 0:
        del arguments["duration_noise"]
    else:
        arguments["latent_noise"] = noise
    return Call(name, arguments)


def _frames(module: Vits, arguments: dict[str, Any]) -> Tensor:
    """Durations before they are rounded."""
    config = module.model.config
    given: dict[str, Any] = {n: arguments[n] for n in ("input_ids", "attention_mask")}
    if config.use_stochastic_duration_prediction:
        spread = arguments.get("noise_scale_duration", config.noise_scale_duration)
        given["noise"] = arguments["duration_noise"] * spread
    if "speaker_id" in arguments:
        given["speaker"] = torch.tensor([arguments["speaker_id"]])
    with torch.no_grad():
        logarithms = module.encode(**given)[0]
    rate: float = arguments.get("speaking_rate", config.speaking_rate)
    return torch.exp(logarithms) / rate


def _original(
    model: Any,
    *,
    noise_scale: float | None = None,
    noise_scale_duration: float | None = None,
    duration_noise: Tensor | None = None,
    latent_noise: Tensor | None = None,
    **arguments: Any,
) -> dict[str, Tensor]:
    """What transformers' own `forward` gives where it draws this noise, or none."""
    drawn = model.config.use_stochastic_duration_prediction
    draws = [duration_noise, latent_noise] if drawn else [latent_noise]
    before = model.noise_scale, model.noise_scale_duration
    if noise_scale is not None:
        model.noise_scale = noise_scale
    if noise_scale_duration is not None:
        model.noise_scale_duration = noise_scale_duration
    try:
        with _Drawn(*(noise for noise in draws if noise is not None)):
            found = model(**arguments, return_dict=True)
    finally:
        model.noise_scale, model.noise_scale_duration = before
    return {n: found[n] for n in ("waveform", "sequence_lengths", "spectrogram")}
