"""The quantizers that `quality.py` compares: torch2mlx's, and those of mlx-lm on the same text.

    python benchmarks/quantizers.py awq 64 512 TEXT.txt MORE.txt --model MODEL --bits 4 ...

runs one of mlx-lm's four trained quantizers (awq, gptq, dwq, dynamic_quant) as it is, but for two
things.  Its text is windows of the files, the same number of each, evenly spaced, instead of a
download.  And gptq computes in float32: the Hessians of a float16 model overflow in float16.

    python benchmarks/quantizers.py rounded-embedding convert MODEL DST -q --calibrate ...

is torch2mlx with the codes of a tied embedding rounded to nearest, as mlx-lm's are: all other
tensors are calibrated beside that one, and --distill tunes its scales and biases as dwq does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

__all__ = ["OURS", "PEER", "TARGETS", "Method", "Settings", "methods"]

OURS, PEER = "torch2mlx", "mlx-lm"
TARGETS = (3.0, 4.0, 5.0, 6.0)
_TUNED = ("2e-5", "5e-5", "1e-4", "1e-5")  # learning rates of dwq
_DEFAULT_RATE = "1e-6"
_MIXED = {3.0: (2, 4), 4.0: (3, 5), 5.0: (4, 6), 6.0: (5, 8)}  # low and high bits by target
_CHARACTERS = 8  # of text a token at most
_DISTILLED = 4  # times as many tokens, as by default


@dataclass(frozen=True)
class Method:
    """One way to quantize.

    Attributes:
        name: unique; "torch2mlx 4-bit calibrated".
        owner: `OURS` or `PEER`.
        arguments: after `python`, without the destination folder, which comes last.
        family: methods that lie on one line of the plot.
        embedding: name of another method whose embedding this one gets; `arguments` is then the
            name of the method that all other tensors come from.
    """

    name: str
    owner: str
    arguments: tuple[str, ...]
    family: str
    embedding: str | None = None


@dataclass(frozen=True)
class Settings:
    """What all methods are given.

    Attributes:
        model: the checkpoint.
        texts: calibration texts, equal parts of each; none: torch2mlx's own.
        tokens: to calibrate with, four times as many with --distill: torch2mlx; the others have
            their own numbers of samples.
        samples: sequences for awq, gptq and dynamic_quant; dwq trains on sixteen times as many.
        length: tokens of a sequence.
        group_size: of all formats.
    """

    model: Path
    texts: Sequence[Path]
    tokens: int = 16384
    samples: int = 64
    length: int = 512
    group_size: int = 64


def methods(asked: Settings, bits: Sequence[int], targets: Sequence[float]) -> list[Method]:
    """All methods, those that the main figures come from first."""
    trained = bool(asked.texts)
    main, more = [b for b in (4, 3) if b in bits], [b for b in (5, 2, 6, 8) if b in bits]
    found: list[Method] = []
    for width in main:
        found += [*_ours(asked, width), *(_trained(asked, width) if trained else ())]
    found += list(_by_default(asked, main)) if trained else []
    found += [_dynamic(asked, target) for target in targets if trained and target in _MIXED]
    for recipe in ("mixed_3_4", "mixed_3_6", "mixed_4_6", "mixed_2_6"):
        arguments = (*_mlx_convert(asked, 4), "--quant-predicate", recipe, "--mlx-path")
        found.append(Method(f"{PEER} {recipe}", PEER, arguments, "mlx-lm mixed"))
    found += [m for width in main for m in _equal(asked, width, trained)]
    for width in more:
        found += [*_ours(asked, width), *(_trained(asked, width) if trained else ())]
    for label in ("calibrated", "distilled"):
        found += [_targeted(asked, target, label) for target in targets]
    if trained:
        found += [_dwq(asked, width, "default") for width in (*main, *more)]
    return found


def _mlx_convert(asked: Settings, bits: int) -> tuple[str, ...]:
    size = ("--q-bits", str(bits), "--q-group-size", str(asked.group_size))
    return ("-m", "mlx_lm", "convert", "--hf-path", str(asked.model), "-q", *size)


def _convert(asked: Settings, *options: str) -> tuple[str, ...]:
    text = (word for path in asked.texts for word in ("--calibration-text", str(path)))
    tokens = str(asked.tokens * (_DISTILLED if "--distill" in options else 1))
    size = ("--q-group-size", str(asked.group_size), "--calibration-tokens", tokens)
    common = ("convert", str(asked.model), "-q", "--quiet", "--no-verify")
    length = ("--max-context", str(asked.length)) if asked.length < 512 else ()
    return (*common, *size, *text, *length, "--calibrate", *options, "--mlx-path")


def _ours(asked: Settings, bits: int) -> Iterator[Method]:
    plain = (*_mlx_convert(asked, bits), "--mlx-path")
    yield Method(f"{PEER} {bits}-bit RTN", PEER, plain, "mlx-lm RTN")
    for label, options in (("calibrated", ()), ("distilled", ("--distill",))):
        arguments = ("-m", OURS, *_convert(asked, "--q-bits", str(bits), *options))
        yield Method(f"{OURS} {bits}-bit {label}", OURS, arguments, f"{OURS} {label}")


def _by_default(asked: Settings, bits: Sequence[int]) -> Iterator[Method]:
    """What the product does where no text is given."""
    for method in (m for width in bits for m in _ours(replace(asked, texts=()), width)):
        if method.owner == OURS:
            own = "its own text"
            yield replace(method, name=f"{method.name}, {own}", family=f"{method.family}, {own}")


def _targeted(asked: Settings, target: float, label: str) -> Method:
    options = ("--distill",) if label == "distilled" else ()
    arguments = ("-m", OURS, *_convert(asked, "--target-bpw", str(target), *options))
    return Method(f"{OURS} {target:g} bpw {label}", OURS, arguments, f"{OURS} {label}")


def _dynamic(asked: Settings, target: float) -> Method:
    (low, high), size = _MIXED[target], str(asked.group_size)
    arguments = (
        *_peer(asked, "dynamic_quant"),
        *("--low-bits", str(low), "--high-bits", str(high)),
        *("--low-group-size", size, "--high-group-size", size),
        *("--target-bpw", str(target), "--mlx-path"),
    )
    return Method(f"{PEER} {target:g} bpw dynamic", PEER, arguments, "mlx-lm dynamic")


def _peer(asked: Settings, module: str) -> tuple[str, ...]:
    script = str(Path(__file__).resolve())
    how = (str(asked.samples), str(asked.length))
    return (script, module, *how, *map(str, asked.texts), "--model", str(asked.model))


def _dwq(asked: Settings, bits: int, rate: str) -> Method:
    arguments = (
        *_peer(asked, "dwq"),
        *("--bits", str(bits), "--group-size", str(asked.group_size)),
        *("--num-samples", str(16 * asked.samples), "--max-seq-length", str(asked.length)),
        *("--learning-rate", _DEFAULT_RATE if rate == "default" else rate, "--mlx-path"),
    )
    return Method(f"{PEER} {bits}-bit dwq {rate}", PEER, arguments, f"mlx-lm dwq {rate}")


def _trained(asked: Settings, bits: int) -> Iterator[Method]:
    size = ("--bits", str(bits), "--group-size", str(asked.group_size))
    yield from (_dwq(asked, bits, rate) for rate in _TUNED)
    embedding = ("--embed-bits", str(bits), "--embed-group-size", str(asked.group_size))
    arguments = (*_peer(asked, "awq"), *size, *embedding, "--mlx-path")
    yield Method(f"{PEER} {bits}-bit awq", PEER, arguments, "mlx-lm awq")
    if bits in (2, 4, 8):  # others are refused by mlx-lm
        rest = ("--fallback-bits", str(bits), "--fallback-group-size", str(asked.group_size))
        arguments = (*_peer(asked, "gptq"), *size, *rest, "--mlx-path")
        yield Method(f"{PEER} {bits}-bit gptq", PEER, arguments, "mlx-lm gptq")


def _equal(asked: Settings, bits: int, trained: bool) -> Iterator[Method]:
    """Rows in which the embedding, tied to the head, is treated alike on both sides."""
    for label, options in (("calibrated", ()), ("distilled", ("--distill",))):
        arguments = (
            str(Path(__file__).resolve()),
            "rounded-embedding",
            *_convert(asked, "--q-bits", str(bits), *options),
        )
        name = f"{OURS} {bits}-bit {label}, embedding RTN"
        yield Method(name, OURS, arguments, "equal embeddings")
    for label in ["RTN", *([f"dwq {rate}" for rate in _TUNED] + ["awq"] if trained else [])]:
        name, given = f"{PEER} {bits}-bit {label}", f"{OURS} {bits}-bit calibrated"
        yield Method(f"{name}, our embedding", PEER, (name,), "equal embeddings", given)


def _run_peer() -> None:
    """Run a module of mlx_lm.quant on a text of ours."""
    from importlib import import_module

    import mlx.core as mx
    import numpy as np

    name, count, length, *rest = sys.argv[1:]
    module: Any = import_module(f"mlx_lm.quant.{name}")
    first = next(i for i, word in enumerate(rest) if word.startswith("--"))
    texts, rest = [Path(p).read_text(encoding="utf-8") for p in rest[:first]], rest[first:]

    def windows(tokenizer: Any, samples: int, tokens: int) -> list[list[int]]:
        found = []
        share = -(-samples // len(texts))
        for i in range(samples):
            words = texts[i % len(texts)]
            start = i // len(texts) * max(1, len(words) // share)
            found.append(list(tokenizer.encode(words[start : start + _CHARACTERS * tokens])))
        return [ids[:tokens] for ids in found if len(ids) >= tokens]

    def one_array(tokenizer: Any, num_samples: int, sequence_length: int) -> mx.array:
        del num_samples, sequence_length
        return mx.array(windows(tokenizer, int(count), int(length)))

    def two_lists(
        tokenizer: Any, data_path: str, num_samples: int, max_seq_length: int, valid: int = 32
    ) -> tuple[list[Any], list[Any]]:
        del data_path
        valid = min(valid, num_samples)
        found = windows(tokenizer, num_samples + valid, max_seq_length)
        order = np.random.default_rng(0).permutation(len(found))
        parts = [(found[i], 0) for i in order]
        return parts[valid:], parts[:valid]

    module.load_data = two_lists if name == "dwq" else one_array
    if name == "gptq":
        load, save = module.load, module.save
        dtype = mx.float16

        def load_wide(*args: Any, **kwargs: Any) -> Any:
            nonlocal dtype
            model, *others = load(*args, **kwargs)
            dtype = model.model.norm.weight.dtype
            model.set_dtype(mx.float32)
            return (model, *others)

        def save_narrow(path: Any, source: Any, model: Any, *args: Any, **kwargs: Any) -> None:
            model.set_dtype(dtype)
            save(path, source, model, *args, **kwargs)

        module.load, module.save = load_wide, save_narrow
    sys.argv = [name, *rest]
    module.main()


def _round_embedding() -> None:
    """Run torch2mlx with the codes of a tied embedding rounded to nearest."""
    import torch

    from torch2mlx.calibration import engine
    from torch2mlx.calibration.scratch import save_step
    from torch2mlx.cli import run
    from torch2mlx.dtypes import to_torch
    from torch2mlx.planning.regions import full
    from torch2mlx.quantization.kernel import quantize_rows

    class Walk(engine._Walk):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.embedding = self.head  # so the quantized stream begins with it

        def _calibrate_head(self, before: Path, folder: Path) -> None:
            output, reader = self.head, self.blocks.reader
            assert output is not None
            assert output.scheme is not None
            bits = output.expr.read(full(output.expr.shape), reader)
            parts = quantize_rows(bits, output.expr.dtype, output.scheme)
            found = {
                part: torch.from_numpy(value)
                if part == "weight"
                else to_torch(value, output.expr.dtype)
                for part, value in parts.items()
            }
            save_step(folder, {f"{output.module}.{k}": v for k, v in found.items()}, {})

    engine._Walk = Walk  # type: ignore[misc]
    sys.argv = [OURS, *sys.argv[2:]]
    run()


if __name__ == "__main__":
    _round_embedding() if sys.argv[1] == "rounded-embedding" else _run_peer()
