"""Draw a picture with the parts that stable_diffusion.py converted; needs MLX, not PyTorch.

    python examples/stable_diffusion_mlx.py FOLDER "a red cat" --picture cat.png

The text encoder reads the prompt, the U-Net takes the noise out of a latent image step by step
(DDIM, Song et al., 2021, without fresh noise), and the decoder makes pixels of it.
"""

from __future__ import annotations

import argparse
import json
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from tokenizers import Tokenizer

__all__ = ["Pipeline", "Schedule", "generate", "load", "noise"]


@dataclass(frozen=True)
class Schedule:
    """How much of the picture is left after each step of adding noise.

    Attributes:
        signal: cumulative products of 1 - beta, `[training steps]`.
        last: the same for the finished picture.
        offset: of the first step.
        velocity: the U-Net predicts velocity and not noise.
    """

    signal: np.ndarray[Any, Any]
    last: float
    offset: int
    velocity: bool

    @classmethod
    def read(cls, file: Path) -> Schedule:
        """The schedule of a diffusers configuration; refuses what `steps` would do otherwise."""
        given = json.loads(file.read_text(encoding="utf-8"))
        count, low, high = given["num_train_timesteps"], given["beta_start"], given["beta_end"]
        if given["beta_schedule"] == "scaled_linear":
            betas = np.linspace(low**0.5, high**0.5, count, dtype=np.float32) ** 2
        elif given["beta_schedule"] == "linear":
            betas = np.linspace(low, high, count, dtype=np.float32)
        else:
            sys.exit(f"error: {file}: beta_schedule {given['beta_schedule']!r} is not written here")
        usual = {"timestep_spacing": "leading", "clip_sample": False, "thresholding": False,
                 "rescale_betas_zero_snr": False}  # fmt: skip
        for name, value in usual.items():
            if given.get(name, value) != value:
                sys.exit(f"error: {file}: {name}={given[name]!r}; written here is {value!r}")
        if given["prediction_type"] not in ("epsilon", "v_prediction"):
            sys.exit(f"error: {file}: prediction_type {given['prediction_type']!r}")
        signal = np.cumprod(1 - betas, dtype=np.float32)
        last = 1.0 if given.get("set_alpha_to_one", True) else float(signal[0])
        velocity = given["prediction_type"] == "v_prediction"
        return cls(signal, last, given.get("steps_offset", 0), velocity)

    def steps(self, count: int) -> list[int]:
        """Evenly spaced steps, the noisiest first."""
        stride = len(self.signal) // count
        return [i * stride + self.offset for i in reversed(range(count))]

    def back(self, latents: mx.array, predicted: mx.array, step: int, stride: int) -> mx.array:
        """The latents one step earlier."""
        now = float(self.signal[step])
        before = float(self.signal[step - stride]) if step >= stride else self.last
        if self.velocity:
            clean = now**0.5 * latents - (1 - now) ** 0.5 * predicted
            predicted = now**0.5 * predicted + (1 - now) ** 0.5 * latents
        else:
            clean = (latents - (1 - now) ** 0.5 * predicted) / now**0.5
        return before**0.5 * clean + (1 - before) ** 0.5 * predicted


@dataclass(frozen=True)
class Pipeline:
    """The converted parts of a folder."""

    tokenizer: Tokenizer
    text_encoder: Callable[[mx.array], mx.array]
    unet: Callable[..., mx.array]
    decoder: Callable[[mx.array], mx.array]
    schedule: Schedule
    latent_shape: tuple[int, ...]


def load(folder: Path) -> Pipeline:
    """Read what stable_diffusion.py wrote."""
    about = json.loads((folder / "pipeline.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    length, pad = about["tokens"], about["pad_token"]
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_token=pad, pad_id=tokenizer.token_to_id(pad))
    return Pipeline(
        tokenizer,
        _model(folder / "text_encoder"),
        _model(folder / "unet"),
        _model(folder / "vae_decoder"),
        Schedule.read(folder / "scheduler" / "scheduler_config.json"),
        tuple(about["latent_shape"]),
    )


def _model(folder: Path) -> Any:
    """A generated model, without an import: every folder calls its file model.py."""
    return runpy.run_path(str(folder / "model.py"))["load"](folder)


def noise(shape: tuple[int, ...], seed: int) -> np.ndarray[Any, Any]:
    """Where the picture starts."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def generate(
    pipeline: Pipeline, prompt: str, start: np.ndarray[Any, Any], steps: int, guidance: float
) -> np.ndarray[Any, Any]:
    """Pixels in 0..1, `[1, height, width, 3]`; guidance as in Ho and Salimans (2022)."""
    ids = [pipeline.tokenizer.encode(text).ids for text in ("", prompt)]
    text = pipeline.text_encoder(mx.array(ids))
    schedule, latents = pipeline.schedule, mx.array(start)
    for step in schedule.steps(steps):
        without, given = mx.split(
            pipeline.unet(mx.concatenate([latents, latents]), mx.array([step, step]), text), 2
        )
        predicted = without + guidance * (given - without)
        latents = schedule.back(latents, predicted, step, len(schedule.signal) // steps)
        mx.eval(latents)
    pixels = pipeline.decoder(latents) / 2 + 0.5
    return np.array(mx.clip(pixels, 0, 1).transpose(0, 2, 3, 1))


def main() -> None:
    """Draw one picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("--picture", type=Path, default=Path("picture.png"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    pipeline = load(given.folder)
    start = noise(pipeline.latent_shape, given.seed)
    pixels = generate(pipeline, given.prompt, start, given.steps, given.guidance)
    from PIL import Image

    Image.fromarray((pixels[0] * 255).round().astype(np.uint8)).save(given.picture)
    print(given.picture)


if __name__ == "__main__":
    main()
