"""The process that measures one engine: `python -m torch2mlx.benchmarking.worker RESULT`.

The request comes as JSON on stdin; the row goes as JSON into the file RESULT, because libraries
write to stdout as they please.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch2mlx.benchmarking.machine import EnergyMeter
from torch2mlx.benchmarking.rows import Row, Spread
from torch2mlx.benchmarking.timing import Words, time_calls, time_streams
from torch2mlx.conversion.memory import peak_resident
from torch2mlx.errors import Torch2MLXError

__all__ = ["main", "measure"]


def measure(request: Mapping[str, Any]) -> Row:
    """The row of one model on one engine; a failure is a row with its reason."""
    common = {"engine": request["engine"], "device": request["device"], "model": request["model"]}
    kind = request["kind"]
    try:
        functions = _MEASURES[(kind, request["engine"].partition(" ")[0])]
        return Row(**common, kind=kind, **functions(request))
    except Exception as error:  # whatever a model provokes in the libraries is this row's alone
        text = " ".join(str(error).split())[:300]
        if not isinstance(error, Torch2MLXError | ValueError):
            text = f"{type(error).__name__}: {text}"
        return Row(**common, kind=kind, error=text)


def _mlx_language(request: Mapping[str, Any]) -> dict[str, Any]:
    import mlx.core as mx
    import mlx_lm.generate  # noqa: F401  imports are not part of loading

    from torch2mlx.benchmarking.mlx_engine import mlx_stream
    from torch2mlx.loading import load_language_model

    base = peak_resident()
    folder = Path(request["model"])
    start = time.perf_counter()
    model, tokenizer = load_language_model(
        folder, trust_remote_code=request["trust_remote_code"], tokenizer=request["tokenizer"]
    )
    mx.eval(model.parameters())
    load = time.perf_counter() - start
    words = _prompts(request, tokenizer)
    found = time_streams(
        mlx_stream(model), words, request["max_tokens"], request["repeats"], EnergyMeter()
    )
    return found | _mlx_facts(model, folder, load, base)


def _mlx_facts(model: Any, folder: Path, load: float, base: int) -> dict[str, Any]:
    """What is told of a folder in MLX, whatever was timed."""
    from torch2mlx.benchmarking.mlx_engine import machine_name, peak_bytes

    return _memory(peak_bytes(), base) | {
        "machine": machine_name(),
        "dtype": _mlx_dtype(model),
        "size_bytes": _size(folder, "model*.safetensors"),
        "load_s": Spread.of([load]),
    }


def _mlx_dtype(model: Any) -> str:
    """Type of what the model computes in: of its norms and scales."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    arrays: Any = tree_flatten(model.parameters())
    kinds = [array.dtype for _, array in arrays if mx.issubdtype(array.dtype, mx.floating)]
    common = max(set(kinds), key=kinds.count) if kinds else mx.float32
    return str(common).removeprefix("mlx.core.")


def _torch_language(request: Mapping[str, Any]) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from torch2mlx.benchmarking.torch_engine import TorchDevice, compiled_stream, eager_stream

    device = TorchDevice(request["device"])
    base = peak_resident()
    path = Path(request["model"])
    gguf: dict[str, Any] = {"gguf_file": path.name} if path.is_file() else {}
    source = str(path.parent) if gguf else request["model"]
    trust = {"trust_remote_code": request["trust_remote_code"]}
    tokenizer = None
    start = time.perf_counter()
    if request["tokenizer"]:
        tokenizer = AutoTokenizer.from_pretrained(source, **trust, **gguf)
    # As on MLX's side: float32 on a CPU, elsewhere what the checkpoint says.
    dtype: Any = torch.float32 if device.name == "cpu" else "auto"
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **trust, **gguf)
    model = model.to(device.name).eval()
    device.wait()
    load = time.perf_counter() - start
    words = _prompts(request, tokenizer)
    tokens = request["max_tokens"]
    if request["engine"] == "torch compile":
        longest = max(len(ids()) for ids in words) + tokens
        stream = compiled_stream(model, device.name, longest)
    else:
        stream = eager_stream(model, device.name)
    found = time_streams(stream, words, tokens, request["repeats"], EnergyMeter())
    return found | _memory(device.peak_bytes(), base) | {
        "machine": device.machine,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "size_bytes": path.stat().st_size if gguf else _size(path, "*.safetensors"),
        "load_s": Spread.of([load]),
    }  # fmt: skip


def _prompts(request: Mapping[str, Any], tokenizer: Any) -> Sequence[Words]:
    """What makes the ids of each prompt; random ids where there is no tokenizer."""
    if tokenizer is not None:

        def encoder(text: str) -> Words:
            return lambda: [int(token) for token in tokenizer.encode(text)]

        return [encoder(text) for text in request["prompts"]]

    def given(ids: Sequence[int]) -> Words:
        return lambda: ids

    return [given(ids) for ids in request["ids"]]


def _mlx_module(request: Mapping[str, Any]) -> dict[str, Any]:
    import mlx.core as mx
    from mlx.utils import tree_flatten

    from torch2mlx.benchmarking.modules import call_arguments, example_inputs
    from torch2mlx.compiler.parity.running import import_model

    base = peak_resident()
    folder = Path(request["model"])
    start = time.perf_counter()
    model = import_model(folder).load(str(folder))
    mx.eval(model.parameters())
    load = time.perf_counter() - start
    kinds = {entry["name"]: entry["dtype"] for entry in request["config"].get("inputs", ())}
    values = example_inputs(request["config"], request["sizes"])
    arrays = {n: mx.array(v).astype(getattr(mx, _mlx_name(kinds[n]))) for n, v in values.items()}
    args, kwargs = call_arguments(model, arrays)

    def call() -> None:
        outputs: Any = tree_flatten(model(*args, **kwargs))
        mx.eval([array for _, array in outputs])

    found = time_calls(call, request["repeats"], EnergyMeter())
    return found | _mlx_facts(model, folder, load, base)


def _mlx_name(dtype: str) -> str:
    return {"bool": "bool_", "float64": "float32"}.get(dtype, dtype)


def _torch_module(request: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    from torch2mlx.benchmarking.modules import call_arguments, example_inputs
    from torch2mlx.benchmarking.torch_engine import TorchDevice
    from torch2mlx.compiler.exported_file import load_exported
    from torch2mlx.compiler.factory import load_factory

    device = TorchDevice(request["device"])
    base = peak_resident()
    source = request["model"]
    start = time.perf_counter()
    if source.endswith(".pt2"):
        module: Any = load_exported(Path(source), request["trust_remote_code"]).module()
    else:
        module = load_factory(source)
    module = module.to(device.name)
    device.wait()
    load = time.perf_counter() - start
    kinds = {entry["name"]: entry["dtype"] for entry in request["config"].get("inputs", ())}
    values = example_inputs(request["config"], request["sizes"])
    tensors = {
        n: torch.from_numpy(np_value).to(device.name, getattr(torch, kinds[n]))
        for n, np_value in values.items()
    }
    args, kwargs = call_arguments(module.forward, tensors)
    run = torch.compile(module) if request["engine"] == "torch compile" else module

    def call() -> None:
        with torch.inference_mode():
            run(*args, **kwargs)
        device.wait()

    found = time_calls(call, request["repeats"], EnergyMeter())
    parameter = next(module.parameters(), None)
    return found | _memory(device.peak_bytes(), base) | {
        "machine": device.machine,
        "dtype": None if parameter is None else str(parameter.dtype).removeprefix("torch."),
        "load_s": Spread.of([load]),
    }  # fmt: skip


_MEASURES = {
    ("language", "mlx"): _mlx_language,
    ("language", "torch"): _torch_language,
    ("module", "mlx"): _mlx_module,
    ("module", "torch"): _torch_module,
}


def _memory(device: int | None, base: int) -> dict[str, Any]:
    if device is not None:
        return {"peak_bytes": Spread.of([device])}
    return {"peak_bytes": Spread.of([peak_resident()]), "base_bytes": base}


def _size(folder: Path, pattern: str) -> int | None:
    files = [path.stat().st_size for path in folder.glob(pattern)] if folder.is_dir() else []
    return sum(files) or None


def main() -> None:
    """Measure the request on stdin."""
    row = measure(json.load(sys.stdin))
    Path(sys.argv[1]).write_text(json.dumps(asdict(row)), encoding="utf-8")


if __name__ == "__main__":
    main()
