"""What lies between the compiled methods of models whose sounds are as long as they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

__all__ = ["FastSpeech2Synthesis", "VitsSynthesis", "repeated"]


def repeated(values: mx.array, counts: mx.array, longest: int) -> mx.array:
    """Rows [batch, length, size], each as often as counted, then zeros [batch, longest, size]."""
    ends = mx.cumsum(counts.astype(mx.int32), axis=1)
    places = (ends[:, None] <= mx.arange(longest)[None, :, None]).sum(axis=-1)
    rows = mx.concatenate([values, mx.zeros_like(values[:, :1])], axis=1)
    return mx.take_along_axis(rows, places[..., None], axis=1)


class VitsSynthesis:
    """From tokens to sound: `encode`, whole durations, as many latents, `decode`."""

    encode: Callable[..., Any]
    decode: Callable[..., Any]
    sampling_rate: int
    speakers: int
    latent_size: int
    samples_per_frame: int
    draws_durations: bool
    speaking_rate: float
    noise_scale: float
    noise_scale_duration: float

    def __call__(
        self,
        input_ids: mx.array,
        attention_mask: mx.array | None = None,
        speaker_id: int | None = None,
        speaking_rate: float | None = None,
        noise_scale: float | None = None,
        noise_scale_duration: float | None = None,
        seed: int | None = None,
        duration_noise: mx.array | None = None,
        latent_noise: mx.array | None = None,
    ) -> dict[str, mx.array]:
        """By name: `waveform` [batch, samples], `sequence_lengths` [batch], `spectrogram`.

        input_ids [batch, length], attention_mask the same (1: a token), speaker_id of 0 to
        speakers - 1, speaking_rate and noise scales as in config.json unless they are given.
        Noise is drawn, repeatably with a seed, or given: duration_noise [batch, 2, length],
        latent_noise [batch, latent_size, at least as many frames as there will be].
        """
        if attention_mask is None:
            attention_mask = mx.ones_like(input_ids)
        voice = self._voice(speaker_id)
        rate = self.speaking_rate if speaking_rate is None else speaking_rate
        scale = self.noise_scale if noise_scale is None else noise_scale
        keys = [None, None] if seed is None else list(mx.random.split(mx.random.key(seed)))
        batch, length = input_ids.shape
        noise = {}
        if self.draws_durations:
            spread = self.noise_scale_duration
            spread = spread if noise_scale_duration is None else noise_scale_duration
            if duration_noise is None:
                duration_noise = mx.random.normal((batch, 2, length), key=keys[0])
            noise = {"noise": duration_noise * spread}
        encoded = self.encode(input_ids=input_ids, attention_mask=attention_mask, **noise, **voice)
        log_durations, means, log_deviations = encoded
        frames = mx.ceil(mx.exp(log_durations) * attention_mask * (1.0 / rate)).astype(mx.int32)
        lengths = mx.maximum(frames.sum(axis=1), 1)
        longest = int(lengths.max())
        mask = (mx.arange(longest)[None] < lengths[:, None]).astype(means.dtype)
        means = repeated(means, frames, longest).swapaxes(1, 2)
        deviations = mx.exp(repeated(log_deviations, frames, longest)).swapaxes(1, 2)
        if latent_noise is None:
            latent_noise = mx.random.normal((batch, self.latent_size, longest), key=keys[1])
        elif latent_noise.shape[2] < longest:
            raise ValueError(f"latent_noise: {latent_noise.shape[2]} of {longest} frames")
        latents = means + latent_noise[..., :longest] * deviations * scale
        spectrogram, waveform = self.decode(latents=latents, mask=mask, **voice)
        return {
            "waveform": waveform,
            "sequence_lengths": lengths.astype(mx.int64) * self.samples_per_frame,
            "spectrogram": spectrogram,
        }

    def _voice(self, speaker_id: int | None) -> dict[str, mx.array]:
        """What the compiled methods are told of a speaker."""
        if self.speakers == 1:
            return {}
        if speaker_id is None or not 0 <= speaker_id < self.speakers:
            raise ValueError(f"speaker_id: {speaker_id}; give one of 0 to {self.speakers - 1}")
        return {"speaker": mx.array([speaker_id], dtype=mx.int64)}


class FastSpeech2Synthesis:
    """From tokens to a spectrogram, or sound: `encode`, as many rows as frames, `decode`."""

    encode: Callable[..., Any]
    decode: Callable[..., Any]
    conditions: tuple[str, ...]
    speaking_speed: float

    def __call__(
        self,
        input_ids: mx.array,
        attention_mask: mx.array | None = None,
        speaker_ids: mx.array | None = None,
        lang_ids: mx.array | None = None,
        speaker_embedding: mx.array | None = None,
    ) -> dict[str, mx.array]:
        """By name: `spectrogram` [batch, frames, bins], `waveform` [batch, samples] where there is
        a vocoder, `duration_outputs`, `pitch_outputs` and `energy_outputs` of the tokens.

        input_ids [batch, length], attention_mask the same (1: a token); of several speakers and
        languages their numbers [batch], and of embedded ones speaker_embedding [batch, size].
        """
        if attention_mask is None:
            attention_mask = mx.ones_like(input_ids)
        given = {
            "speaker_ids": speaker_ids,
            "lang_ids": lang_ids,
            "speaker_embedding": speaker_embedding,
        }
        missing = [name for name in self.conditions if given[name] is None]
        if missing:
            raise ValueError(f"{', '.join(missing)}: this model needs it")
        chosen = {name: given[name] for name in self.conditions}
        encoded = self.encode(input_ids=input_ids, attention_mask=attention_mask, **chosen)
        frames = encoded["durations"]
        if self.speaking_speed != 1.0:
            frames = mx.round(frames * self.speaking_speed).astype(mx.int64)
        if not frames.sum().item():
            frames = mx.ones_like(frames)
        longest = int(frames.sum(axis=1).max())
        return {
            **self.decode(rows=repeated(encoded["rows"], frames, longest)),
            "duration_outputs": encoded["durations"],
            "pitch_outputs": encoded["pitch"],
            "energy_outputs": encoded["energy"],
        }
