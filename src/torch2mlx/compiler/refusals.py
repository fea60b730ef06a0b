"""Options that a kind of program does not take, each with what to do instead."""

from __future__ import annotations

from torch2mlx.compiler.example import Example
from torch2mlx.errors import OptionError
from torch2mlx.options import ConvertOptions
from torch2mlx.planning.plan import FLOAT_DTYPES

__all__ = [
    "check_exported",
    "check_kokoro",
    "check_options",
    "check_pipeline",
    "check_pretrained",
    "check_speech",
]

_REFUSED = {
    "distill": "--distill: belongs to ports of language models; leave it out",
    "calibration_tokens": "--calibration-tokens: belongs to ports of language models; a module is "
    "calibrated with all of its example and of --calibration-text FILE.pt",
    "target_bpw": "--target-bpw: belongs to ports of language models; choose --q-bits",
    "fit": "--fit: belongs to ports of language models; choose --q-bits",
    "max_kl": "--max-kl: belongs to ports of language models; leave it out",
    "min_top1": "--min-top1: belongs to ports of language models; leave it out",
    "max_perplexity": "--max-perplexity: belongs to ports of language models; leave it out",
    "max_loops": "--max-loops: belongs to ports of language models; leave it out",
    "calibration_samples": "--calibration-samples: a module writes no text; leave it out",
    "auto": "--auto: belongs to ports of language models; leave it out",
    "adapter": "--adapter: belongs to checkpoints; merge it into the module before",
    "expert_layout": "--expert-layout: belongs to checkpoints; leave it out",
    "text_only": "--text-only: belongs to multimodal checkpoints; leave it out",
    "dequantize": "-d: a module has no quantized layers of MLX; leave it out",
    "keep_download": "--keep-download: belongs to a hub id as SRC; leave it out",
    "max_context": "--max-context: belongs to ports of language models; bound an extent with "
    "--dynamic x:1=length:2..4096",
}


def check_options(options: ConvertOptions) -> None:
    """Raise OptionError, with all of them, for options that no program takes."""
    default = ConvertOptions()
    refused = [t for n, t in _REFUSED.items() if getattr(options, n) != getattr(default, n)]
    if options.revision is not None and options.weights is None:
        refused.append("--revision: belongs to a hub id in --weights; leave it out")
    if options.precision_policy() != {}:
        refused.append("--runtime-precision: belongs to ports of language models; leave it out")
    if options.dtype is not None and options.dtype not in FLOAT_DTYPES:
        refused.append(f"--dtype {options.dtype}: choose one of {', '.join(FLOAT_DTYPES)}")
    if refused:
        raise OptionError("; ".join(refused))


def check_exported(options: ConvertOptions, example: Example) -> None:
    """Raise OptionError for what an exported program has of its own."""
    if example.given:
        raise OptionError(
            "an exported program brings its own example and dynamic shapes; leave out "
            "example inputs and dynamic shapes, or convert the module itself"
        )
    refused = {"--dtype": options.dtype, "--weights": options.weights}
    given = [flag for flag, value in refused.items() if value is not None]
    if given:
        raise OptionError(
            f"{', '.join(given)}: an exported program has the dtypes and weights that it was "
            "exported with; change the module and export it again, or convert the module itself"
        )


def check_pipeline(name: str, options: ConvertOptions, example: Example) -> None:
    """Raise OptionError for what a pipeline has of its own."""
    given = {"an example": example.given, "--weights": options.weights is not None}
    if any(given.values()):
        raise OptionError(
            f"{name}: {' and '.join(n for n, g in given.items() if g)}: a pipeline has its own; "
            "leave it out"
        )


def check_pretrained(name: str, options: ConvertOptions, example: Example) -> None:
    """Raise OptionError for what a checkpoint has of its own, and for what only its user has."""
    if options.weights is not None:
        raise OptionError(f"{name}: --weights: a checkpoint has its own; leave it out")
    if options.calibrate and not (example.given or options.calibration_text):
        raise OptionError(
            f"{name}: --calibrate: the example that is made of a model's settings has random "
            "values; give arguments of forward, by name, as it will see them: --calibration-text "
            "inputs.pt"
        )


def check_speech(name: str, options: ConvertOptions, example: Example) -> None:
    """Raise OptionError for what a speech model of transformers has of its own."""
    if given := _not_of_speech(options, example):
        raise OptionError(
            f"{name}: {' and '.join(given)}: a speech model has its own example and weights, and "
            "computes in float32, because durations are rounded; leave it out"
        )


def check_kokoro(name: str, options: ConvertOptions, example: Example) -> None:
    """Raise OptionError for what Kokoro has of its own."""
    given = _not_of_speech(options, example)
    if options.quant_options() is not None:
        given.append("quantization")
    if given:
        raise OptionError(
            f"{name}: {' and '.join(given)}: Kokoro is converted with its own weights as they "
            "are; leave it out"
        )


def _not_of_speech(options: ConvertOptions, example: Example) -> list[str]:
    """What was given that a speech model has of its own."""
    given = {
        "an example": example.given,
        "--weights": options.weights is not None,
        f"--dtype {options.dtype}": options.dtype not in (None, "float32"),
    }
    return [name for name, there in given.items() if there]
