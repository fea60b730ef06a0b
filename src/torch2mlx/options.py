"""What a user can ask of a conversion, checked before anything is opened."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2mlx.errors import OptionError
from torch2mlx.planning.shards import parse_size
from torch2mlx.precision import AUTO, parse_precision
from torch2mlx.quantization.recipe import RECIPES, QuantOptions, override_text, parse_override
from torch2mlx.quantization.recipe_file import read_recipe
from torch2mlx.quantization.scheme import Scheme

if TYPE_CHECKING:
    from torch2mlx.verification.quality import Bounds

__all__ = ["ConvertOptions"]


# A run that was stopped and continued leaves the manifest of one that was not.
_OF_THE_RUN = ("keep_download", "restart", "wait", "also")

_MODES = {mode: mode for mode in ("mxfp4", "nvfp4", "mxfp8")}
_SHORT_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True)
class ConvertOptions:
    """Options of `torch2mlx.convert`, as given; `check` turns them into values.

    Attributes:
        quantize: quantize at all; the fields up to `dequantize` are refused without it.
        q_bits, q_group_size, q_mode: the format (see `Scheme.resolve` for the defaults).
        recipe: one of mlx-lm's mixed recipes, or a .toml file (`recipe_file`).
        keep: patterns of modules that stay unquantized.
        bits: "pattern=6", "pattern=6:32", "pattern=mxfp8" or "pattern=keep", the last match wins;
            they come after those of a recipe file.
        embedding, head: "keep" or a number of bits.
        router: "8bit", "keep" or "same" (mlx-lm's choice).
        strict: a layer that the group size does not divide is an error.
        target_bpw: bits per weight of the whole model; each module then gets bits of its own.
        fit: memory, such as "16GB", that weights, caches and the rest of the running model may
            take; each module gets bits so that they do.
        context: tokens of the longest text that `fit` counts caches for.
        calibrate: choose codes, scales and biases by what the model computes with them.
        distill: tune scales and biases afterwards, so that predictions stay the original's.
        calibration_text: files to calibrate with; None: texts of the Python installation and chats
            with the model.
        calibration_tokens: how many tokens to use; None: 16,384, or 65,536 with `distill`.
        calibration_samples: how many of them to draw from the model itself, in place of text.
        max_kl, min_top1, max_perplexity, max_loops: publish only within these bounds on the
            built-in text (`verification.quality.Bounds`).
        auto: where a bound does not hold, try one cure after the other until all do.
        adapter: folder of a LoRA or DoRA adapter to merge into the checkpoint.
        expert_layout: how the checkpoint holds fused experts, where it is not as its family does:
            one of `torch2mlx.sources.experts.EXPERT_LAYOUTS`.
        text_only: of a multimodal checkpoint, convert the language model alone.
        dequantize: make a plain model of a quantized MLX folder.
        dtype: float16, bfloat16 or float32 for what is not quantized.
        runtime_precision: types that modules of the result compute in, as in
            "self_attn=float32,mlp=float16", after those of a recipe file; "auto": what measured
            activations call for.
        max_shard_size: bound on each weight file, such as "5GB".
        memory_limit: bound on the memory of the conversion, such as "1GB".
        verify: run the parity gate.
        max_context: prove and allow only this many tokens; None: as many as the config says.
        trust_remote_code: allow code that the checkpoint brings.
        revision: branch, tag or commit of a hub id.
        keep_download: download the weights of a hub id into the hub's cache first.
        restart: discard what an earlier run left that was begun from something else.
        wait: wait for another run for the same destination.
        weights: of a module: a checkpoint with the values of its weights.
        also: further outputs from the same pass over the source: "8bit", "mxfp4", "bf16" ...
    """

    quantize: bool = False
    q_bits: int | None = None
    q_group_size: int | None = None
    q_mode: str | None = None
    recipe: str | None = None
    keep: Sequence[str] = ()
    bits: Sequence[str] = ()
    embedding: str | int | None = None
    head: str | int | None = None
    router: str | None = None
    strict: bool = False
    target_bpw: float | None = None
    fit: str | int | None = None
    context: int | None = None
    calibrate: bool = False
    distill: bool = False
    calibration_text: Sequence[str] = ()
    calibration_tokens: int | None = None
    calibration_samples: int | None = None
    max_kl: float | None = None
    min_top1: float | None = None
    max_perplexity: float | None = None
    max_loops: float | None = None
    auto: bool = False
    adapter: str | Path | None = None
    expert_layout: str | None = None
    text_only: bool = False
    dequantize: bool = False
    dtype: str | None = None
    runtime_precision: str | None = None
    max_shard_size: str | int = "5GB"
    memory_limit: str | int = "1GB"
    verify: bool = True
    max_context: int | None = None
    trust_remote_code: bool = False
    revision: str | None = None
    keep_download: bool = False
    restart: bool = False
    wait: bool = False
    weights: str | Path | None = None
    also: Sequence[str] = ()

    def check(self) -> None:
        """Raise OptionError for contradictions, before any file is opened."""
        needs_q = {
            "--q-bits": self.q_bits, "--q-group-size": self.q_group_size, "--q-mode": self.q_mode,
            "--recipe": self.recipe, "--keep": _patterns("--keep", self.keep),
            "--bits": _patterns("--bits", self.bits), "--embedding": self.embedding,
            "--head": self.head, "--router": self.router, "--strict": self.strict,
            "--calibrate": self.calibrate, "--target-bpw": self.target_bpw, "--fit": self.fit,
            **self._bound_flags(), "--auto": self.auto,
        }  # fmt: skip
        given = [f for f, v in needs_q.items() if v is not None and v is not False and v != ()]
        if given and not self.quantize:
            raise OptionError(
                f"{', '.join(given)}: how to quantize, but quantization is off; add -q"
            )
        texts = _patterns("--calibration-text", self.calibration_text)
        if self.distill and not self.calibrate:
            raise OptionError("--distill tunes what calibration found; add --calibrate")
        data = {
            "--calibration-text": texts, "--calibration-tokens": self.calibration_tokens,
            "--calibration-samples": self.calibration_samples,
        }  # fmt: skip
        given = [flag for flag, value in data.items() if value]
        if given and not (self.calibrate or self.auto or (self.sized and texts)):
            raise OptionError(
                f"{', '.join(given)}: what to calibrate with, but calibration is off; add "
                "--calibrate"
            )
        if self.calibration_tokens is not None and self.calibration_tokens < 64:
            raise OptionError(
                f"--calibration-tokens {self.calibration_tokens}: at least 64 are needed"
            )
        if self.context is not None and self.fit is None:
            raise OptionError(f"--context {self.context}: belongs to --fit; add --fit 16GB")
        if self.calibration_samples is not None and self.calibration_samples < 1:
            raise OptionError(f"--calibration-samples {self.calibration_samples}: at least 1 token")
        if self.sized:
            self._check_size()
        self._check_bounds()
        if self.quantize and self.dequantize:
            raise OptionError("-q and -d exclude each other: quantize or dequantize")
        if self.max_context is not None and self.max_context < 2:
            raise OptionError(f"--max-context {self.max_context}: at least 2 tokens")
        parse_size(self.max_shard_size, "--max-shard-size")
        parse_size(self.memory_limit, "--memory-limit")
        asked = self.quant_options()
        if self.distill and asked is not None and not asked.scheme.affine:
            raise OptionError(
                "--distill tunes scales and biases of the affine format, not of "
                f"{asked.scheme.mode}; leave out --distill or --q-mode"
            )
        self.precision_policy()
        for options in self.further().values():
            options.check()

    @property
    def bounds(self) -> Bounds:
        """What quantization may cost."""
        from torch2mlx.verification.quality import Bounds

        return Bounds(self.max_kl, self.min_top1, self.max_perplexity, self.max_loops)

    @property
    def tuned(self) -> bool:
        """More than rounding to nearest at given bits, or bounds on what it costs."""
        return self.sized or self.calibrate or self.auto or self.bounds.given

    def _bound_flags(self) -> dict[str, float | None]:
        return {f"--{k.replace('_', '-')}": v for k, v in asdict(self.bounds).items()}

    def _check_bounds(self) -> None:
        given = [flag for flag, value in self._bound_flags().items() if value is not None]
        if given and not self.verify:
            raise OptionError(
                f"{', '.join(given)}: verification measures it; leave out --no-verify"
            )
        if self.auto and not given:
            raise OptionError(
                "--auto tries cures until bounds hold; name one, such as --max-kl 0.1"
            )
        if self.auto and self.also:
            raise OptionError("--auto: makes one output; leave out --also")
        for flag in ("--min-top1", "--max-loops"):
            value = self._bound_flags()[flag]
            if value is not None and not 0 <= value <= 1:
                raise OptionError(f"{flag} {value}: a share from 0 to 1")
        if self.max_kl is not None and not self.max_kl >= 0:
            raise OptionError(f"--max-kl {self.max_kl}: nats a token, 0 or more")
        if self.max_perplexity is not None and not self.max_perplexity >= 1:
            raise OptionError(
                f"--max-perplexity {self.max_perplexity}: a multiple of the original's, 1 or more"
            )

    @property
    def sized(self) -> bool:
        """Each module gets bits of its own, for a size that the user names."""
        return self.target_bpw is not None or self.fit is not None

    def _check_size(self) -> None:
        flag = "--fit" if self.target_bpw is None else "--target-bpw"
        recipe = None if self.recipe is None or self._recipe_file else self.recipe
        taken = {"--q-bits": self.q_bits, "--recipe": recipe, "--fit": self.fit}
        given = [f for f, value in taken.items() if value is not None and f != flag]
        if given or self.q_mode not in (None, "affine"):
            raise OptionError(
                f"{flag} chooses the bits of every module, in the affine format; leave out "
                f"{', '.join(given) or '--q-mode'}"
            )
        if self.target_bpw is not None and not 2 < float(self.target_bpw) <= 16:
            raise OptionError(f"--target-bpw {self.target_bpw}: more than 2 and at most 16")
        if self.fit is not None:
            parse_size(self.fit, "--fit")
        if self.context is not None and self.context < 1:
            raise OptionError(f"--context {self.context}: at least 1 token")

    @property
    def _recipe_file(self) -> bool:
        return self.recipe is not None and self.recipe not in RECIPES

    @property
    def patterns(self) -> tuple[str, ...]:
        """Values of `--bits` that say the same as a recipe file's modules and `bits`."""
        written = read_recipe(Path(self.recipe)) if self._recipe_file and self.recipe else None
        overrides = written.overrides if written else ()
        return (*(override_text(*entry) for entry in overrides), *self.bits)

    def check_source(self, kind: str, location: str) -> None:
        """Raise OptionError where the kind of source calls for another option.

        Args:
            kind: `Checkpoint.kind`.
            location: of the source, for the message.
        """
        if kind == "mlx" and not (self.quantize or self.dequantize):
            raise OptionError(
                f"{location}: is a quantized MLX model already; -d makes a plain one of it, -q "
                "quantizes it anew"
            )
        if kind != "mlx" and self.dequantize:
            raise OptionError(f"{location}: is no quantized MLX model; leave out -d")

    def quant_options(self) -> QuantOptions | None:
        """The quantization part, or None."""
        if not self.quantize:
            return None
        written = read_recipe(Path(self.recipe)) if self._recipe_file and self.recipe else None
        shape = {
            "--q-bits": self.q_bits, "--q-group-size": self.q_group_size, "--q-mode": self.q_mode,
        }  # fmt: skip
        if written is not None and written.base is not None:
            given = [flag for flag, value in shape.items() if value is not None]
            if given:
                raise OptionError(
                    f"--recipe {self.recipe} names a base format; leave out {', '.join(given)}"
                )
        elif written is None and self.recipe is not None and self.q_bits is not None:
            raise OptionError(
                f"--recipe {self.recipe} chooses the bits of every layer; leave out --q-bits"
            )
        base = written.base if written else None
        scheme = base or Scheme.resolve(self.q_bits, self.q_group_size, self.q_mode or "affine")
        if self.sized and not scheme.affine:
            raise OptionError(f"--recipe {self.recipe}: bits are chosen in the affine format")
        return QuantOptions(
            scheme=scheme,
            recipe=None if written else self.recipe,
            keep=tuple(self.keep),
            overrides=(
                *(written.overrides if written else ()),
                *(parse_override(text) for text in _patterns("--bits", self.bits)),
            ),
            embedding=_bits("--embedding", self.embedding),
            head=_bits("--head", self.head),
            router=self.router,
            strict=self.strict,
        )

    def precision_policy(self) -> dict[str, str] | None:
        """Pattern → type that modules compute in; None: to be measured."""
        if self.runtime_precision == AUTO:
            return None
        written = read_recipe(Path(self.recipe)) if self._recipe_file and self.recipe else None
        return parse_precision(
            self.runtime_precision or "", written.runtime_precision if written else None
        )

    @property
    def keep_grids(self) -> bool:
        """No format was asked for: what the source stores on a grid of MLX's may keep it."""
        return self.quantize and not (
            self.sized or self.q_bits or self.q_group_size or self.q_mode or self.recipe
        )

    def further(self) -> dict[str, ConvertOptions]:
        """The options of each further output, by the name that `also` gives it.

        Group size, `keep`, `router` and `strict` hold for all that are quantized; recipe, bits by
        pattern, embedding, head and calibration only for the first output.
        """
        found: dict[str, ConvertOptions] = {}
        for name in _patterns("--also", self.also):
            if name in found:
                raise OptionError(f"--also {name} is given twice")
            bits, mode, dtype = re.fullmatch(r"([2-8])bit", name), _MODES.get(name), None
            if not (bits or mode):
                dtype = _SHORT_DTYPES.get(name)
                if dtype is None:
                    raise OptionError(
                        f"--also {name}: write 2bit to 8bit, {', '.join((*_MODES, *_SHORT_DTYPES))}"
                    )
            shared: dict[str, Any] = {
                "recipe": None, "bits": (), "embedding": None, "head": None,
                "calibrate": False, "distill": False, "calibration_text": (),
                "calibration_tokens": None, "calibration_samples": None,
                "target_bpw": None, "fit": None, "context": None, "max_kl": None, "min_top1": None,
                "max_perplexity": None, "max_loops": None, "auto": False,
            }  # fmt: skip
            if mode:
                shared |= {"q_group_size": None}
            if dtype is not None:
                shared |= {"q_group_size": None, "keep": (), "router": None, "strict": False}
            found[name] = replace(
                self,
                also=(),
                quantize=dtype is None,
                q_bits=int(bits[1]) if bits else None,
                q_mode=mode,
                dtype=dtype or self.dtype,
                **shared,
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """The options that differ from their defaults, but for how the run deals with others."""
        default = asdict(ConvertOptions())
        given = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}
        return {k: given[k] for k in given if given[k] != default[k] and k not in _OF_THE_RUN}


def _patterns(flag: str, value: Sequence[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        raise OptionError(f"{flag} takes a list of patterns: [{value!r}]")
    return tuple(value)


def _bits(flag: str, value: str | int | None) -> int | str | None:
    if value is None or value == "keep" or isinstance(value, int):
        return value
    if value.isdecimal():
        return int(value)
    raise OptionError(f"{flag} {value}: write a number of bits, or keep")
