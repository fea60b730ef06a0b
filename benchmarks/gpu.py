"""MLX beside PyTorch on one GPU: random models of real shapes, made there, nothing downloaded.

    python benchmarks/gpu.py --out FOLDER [--only llama-1b llama-8b moe generated] [--limit 480]
                             [--rows bfloat16 8-bit 4-bit eager compile]
    python benchmarks/gpu.py --table FOLDER/rows.jsonl [MORE.jsonl ...]

For each shape: MLX in bfloat16, 8 and 4 bits (mlx-lm's port, weights drawn and quantized in place),
PyTorch eager and compiled (transformers), the same prompt of random ids and the same number of
tokens; then generated ports beside mlx-lm's, by benchmarks/decoders.py.  Every part is a process
with a time limit; rows are written into FOLDER/rows.jsonl as they come, so that a part that fails
or hangs loses only its own, and its log ends with the place where it
stood.  `--tiny` takes small shapes, for a try on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch2mlx.benchmarking.machine import EnergyMeter
from torch2mlx.benchmarking.rows import Row, Spread
from torch2mlx.benchmarking.timing import time_streams

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-1b": (  # Llama-3.2-1B
        "llama",
        {
            "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256,
            "tie_word_embeddings": True,
        },
    ),
    "llama-8b": (  # Llama-3.1-8B
        "llama",
        {
            "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256,
            "tie_word_embeddings": False,
        },
    ),
    "moe": (  # Qwen3-30B-A3B with half of its layers, so that bfloat16 fits into 40 GB
        "qwen3_moe",
        {
            "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
            "num_hidden_layers": 24, "num_attention_heads": 32, "num_key_value_heads": 4,
            "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True,
            "decoder_sparse_step": 1, "mlp_only_layers": [], "vocab_size": 151_936,
            "tie_word_embeddings": False,
        },
    ),
}  # fmt: skip
_COMMON = {"max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0}
_TINY = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
    "moe_intermediate_size": 128, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 32,
}  # fmt: skip

# part → seconds that it may take
LIMITS = {
    "mlx llama-1b": 80,
    "torch llama-1b": 120,
    "mlx llama-8b": 100,
    "torch llama-8b": 150,
    "mlx moe": 120,
    "torch moe": 170,
    "generated llama": 120,
    "generated mixtral": 150,
}
_WIDTHS = {"bfloat16": None, "8-bit": 8, "4-bit": 4}
_ENGINES = ("eager", "compile")


def config_of(name: str, tiny: bool) -> dict[str, Any]:
    """config.json of a shape, in the flat style that mlx-lm and transformers both read."""
    kind, values = SHAPES[name]
    if tiny:
        values = {key: _TINY.get(key, value) for key, value in values.items()}
    return {"model_type": kind, **_COMMON, **values}


def prompt_of(config: dict[str, Any], length: int) -> list[int]:
    """Random ids, the same for every engine."""
    generator = random.Random(0)
    return [generator.randrange(config["vocab_size"]) for _ in range(length)]


def mlx_rows(
    name: str, wanted: Sequence[str], tiny: bool, length: int, tokens: int, repeats: int
) -> Iterator[Row]:
    """MLX in 16 bits (32 on a CPU, whose kernels lack some of bfloat16's), 8 and 4 bits."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    from torch2mlx.benchmarking.mlx_engine import machine_name, mlx_stream, peak_bytes

    config = config_of(name, tiny)
    ids = prompt_of(config, length)
    device = "cpu" if mx.default_device() == mx.cpu else "gpu"
    dtype = "float32" if device == "cpu" else "bfloat16"
    for label, bits in _WIDTHS.items():
        if label not in wanted:
            continue
        start = time.perf_counter()
        model = mlx_model(config, bits, getattr(mx, dtype))
        made = time.perf_counter() - start
        print(f"{label}: drawn in {made:.1f} s", flush=True)
        arrays: Any = tree_flatten(model.parameters())
        mx.clear_cache()
        mx.reset_peak_memory()
        found = time_streams(mlx_stream(model), [lambda: ids], tokens, repeats, EnergyMeter())
        peak = peak_bytes()
        found["not_measured"] |= {"load_s": f"no file: weights were drawn in {made:.1f} s"}
        yield Row(
            engine="mlx",
            device=device,
            machine=machine_name(),
            model=f"{name} {label if bits else dtype}",
            dtype=dtype,
            size_bytes=sum(array.nbytes for _, array in arrays),
            peak_bytes=Spread.of([peak if peak is not None else mx.get_peak_memory()]),
            **found,
        )
        del model, arrays
        mx.clear_cache()


def mlx_model(config: dict[str, Any], bits: int | None, dtype: Any) -> Any:
    """mlx-lm's port with random weights; one module at a time, so that no float32 copy is whole."""
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_map, tree_unflatten
    from mlx_lm.utils import _get_classes

    model_class, args_class = _get_classes(config=config)
    model = model_class(args_class.from_dict(config))
    model.eval()
    mx.random.seed(0)
    leaves: Any = tree_flatten(model.leaf_modules(), is_leaf=lambda m: hasattr(m, "parameters"))
    replaced = []
    for path, module in leaves:
        module.update(tree_map(lambda array: _drawn(array, dtype), module.parameters()))
        # Routers stay at 8 bits, as conversion leaves them.
        width = 8 if bits and path.endswith("mlp.gate") else bits
        if width and hasattr(module, "to_quantized"):
            module = module.to_quantized(group_size=64, bits=width)
            replaced.append((path, module))
        mx.eval(module.parameters())
    if replaced:
        model.update_modules(tree_unflatten(replaced))
    mx.eval(model.parameters())
    return model


def _drawn(array: Any, dtype: Any) -> Any:
    import mlx.core as mx

    if array.ndim < 2:  # scales of norms
        return mx.ones(array.shape, dtype)
    return mx.random.normal(array.shape, dtype) * array.shape[-1] ** -0.5


def torch_rows(
    name: str, wanted: Sequence[str], tiny: bool, length: int, tokens: int, repeats: int
) -> Iterator[Row]:
    """PyTorch eager, then compiled."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from torch2mlx.benchmarking.torch_engine import TorchDevice, compiled_stream, eager_stream
    from torch2mlx.conversion.memory import peak_resident

    values = config_of(name, tiny)
    config = CONFIG_MAPPING[values.pop("model_type")](**values)
    ids = prompt_of(values, length)
    device = TorchDevice("cuda" if torch.cuda.is_available() else "cpu")
    dtype = "bfloat16" if device.name == "cuda" else "float32"
    start = time.perf_counter()
    with torch.device(device.name):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
    made = time.perf_counter() - start
    streams = {
        "eager": lambda: eager_stream(model, device.name),
        "compile": lambda: compiled_stream(model, device.name, length + tokens),
    }
    for engine, build in streams.items():
        if engine not in wanted:
            continue
        if device.name == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        found = time_streams(build(), [lambda: ids], tokens, repeats, EnergyMeter())
        peak = device.peak_bytes()
        found["not_measured"] |= {"load_s": f"no file: weights were drawn in {made:.1f} s"}
        yield Row(
            engine=f"torch {engine}",
            device=device.name,
            machine=device.machine,
            model=f"{name} {dtype}",
            dtype=dtype,
            size_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
            peak_bytes=Spread.of([peak if peak is not None else peak_resident()]),
            **found,
        )


def generated_rows(name: str, tiny: bool, length: int, repeats: int) -> Iterator[dict[str, Any]]:
    """A generated port beside mlx-lm's, in turns, in 16 (on a CPU 32) and 4 bits."""
    import mlx.core as mx

    import decoders

    dtype = "float32" if mx.default_device() == mx.cpu else "bfloat16"
    for bits in (None, 4):
        yield from decoders.compare(
            name, full=not tiny, repeats=repeats, length=length, dtype=dtype, bits=bits
        )


def work(part: str, given: argparse.Namespace, rows: Path) -> None:
    """Measure one part, in this process."""
    kind, _, name = part.partition(" ")
    if kind == "generated":
        found: Iterator[Any] = generated_rows(name, given.tiny, given.length, 3 * given.repeats)
    else:
        measure = mlx_rows if kind == "mlx" else torch_rows
        sizes = (given.tiny, given.length, given.tokens, given.repeats)
        found = measure(name, given.rows, *sizes)
    for row in found:
        plain = asdict(row) if isinstance(row, Row) else row
        with rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain) + "\n")


def run(parts: Sequence[str], given: argparse.Namespace) -> None:
    """Run parts one after the other; what fails or does not fit is a row with its reason."""
    given.out.mkdir(parents=True, exist_ok=True)
    rows = given.out / "rows.jsonl"
    end = time.monotonic() + given.limit
    for part in parts:
        left = min(LIMITS[part], end - time.monotonic())
        began = time.monotonic()
        reason = None
        if left < 10:
            reason = "no time was left"
        else:
            command = [sys.executable, __file__, "--part", part, "--out", str(given.out)]
            command += ["--length", str(given.length), "--tokens", str(given.tokens)]
            command += ["--repeats", str(given.repeats), *(["--tiny"] if given.tiny else [])]
            command += ["--rows", *given.rows]
            log = given.out / f"{part.replace(' ', '-')}.log"
            with log.open("w", encoding="utf-8") as file:
                child = subprocess.Popen(
                    command,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                    env=os.environ | {"PYTHONFAULTHANDLER": "1"},  # SIGABRT says where it stands
                )
                try:
                    code = child.wait(timeout=left)
                    reason = f"ended with {code}" if code else None
                except subprocess.TimeoutExpired:  # with its own children, which hold the GPU too
                    child.send_signal(signal.SIGABRT)
                    time.sleep(1)
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait()
                    reason = f"stopped after {left:.0f} s"
            if reason:
                last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
                reason = f"{reason}: {' '.join(last)[:300]}"
        if reason:
            with rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"part": part, "error": reason}) + "\n")
        print(f"{part}: {time.monotonic() - began:.0f} s {reason or 'ok'}", flush=True)
    print(table([rows]))


def table(files: Sequence[Path]) -> str:
    """The rows as Markdown: figures as measured, ratios within a model."""
    plain = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    rows = [Row.from_dict(row) for row in plain if "engine" in row]
    lines = [
        "| model | engine | size GB | peak memory GB | first token ms | prefill tokens/s "
        "| decode tokens/s | of torch eager |",
        "|---|---|---|---|---|---|---|---|",
    ]
    eager = {r.model.split()[0]: r.decode_tps for r in rows if r.engine == "torch eager"}
    for row in rows:
        base = eager.get(row.model.split()[0])
        ratio = "-"
        if base is not None and row.decode_tps is not None:
            ratio = f"{row.decode_tps.median / base.median:.2f}"
        size = "-" if row.size_bytes is None else f"{row.size_bytes / 1e9:.2f}"
        lines.append(
            f"| {row.model} | {row.engine} | {size} | {_cell(row.peak_bytes, 1e-9)} "
            f"| {_cell(row.ttft_s, 1e3)} | {_cell(row.prefill_tps)} | {_cell(row.decode_tps)} "
            f"| {ratio} |"
        )
    machines = sorted({str(row.machine) for row in rows})
    lines += ["", f"Machine: {', '.join(machines) or 'none'}"]
    pairs = [row for row in plain if "ratio" in row]
    if pairs:
        lines += ["", "| generated port | weights | phase | generated ms | mlx-lm ms | ratio |"]
        lines += ["|---|---|---|---|---|---|"]
        lines += [
            f"| {p['model']} | {p['weights']} | {p['phase']} | {p['generated_ms']:.2f} "
            f"| {p['by_hand_ms']:.2f} | {p['ratio']:.3f} |"
            for p in pairs
        ]
    lines += [f"\nNot measured: {row['part']}: {row['error']}" for row in plain if "part" in row]
    return "\n".join(lines)


def _cell(spread: Spread | None, factor: float = 1) -> str:
    if spread is None:
        return "-"
    median = f"{factor * spread.median:.4g}"
    if spread.runs == 1:
        return median
    return f"{median} ({factor * spread.low:.4g} to {factor * spread.high:.4g})"


def main() -> None:
    """Run, or print the table of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, help="folder of rows.jsonl and of the parts' logs")
    parser.add_argument("--only", nargs="+", help="names of shapes, or generated")
    rows = (*_WIDTHS, *_ENGINES)
    parser.add_argument("--rows", nargs="+", choices=rows, default=list(rows), metavar="ROW")
    parser.add_argument("--limit", type=float, default=480, help="seconds for everything")
    parser.add_argument("--length", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=128, help="generated tokens")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="small shapes")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--table", type=Path, nargs="+", metavar="ROWS", help="print, run nothing")
    given = parser.parse_args()
    if given.table:
        print(table(given.table))
    elif given.out is None:
        parser.error("--out FOLDER")
    elif given.part:
        work(given.part, given, given.out / "rows.jsonl")
    else:
        wanted = set(given.only or [name for part in LIMITS for name in part.split()])
        asked = {"mlx": {*_WIDTHS} & {*given.rows}, "torch": {*_ENGINES} & {*given.rows}}
        parts = [part for part in LIMITS if wanted & set(part.split())]
        parts = [part for part in parts if asked.get(part.split()[0], True)]
        run(parts or parser.error("--only names nothing"), given)


if __name__ == "__main__":
    main()
