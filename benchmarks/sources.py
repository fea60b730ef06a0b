"""Memory of converting large checkpoints in unusual layouts, with the default limit.

    python benchmarks/sources.py FOLDER [--gigabytes 8]

Writes, one after the other, a Llama of 8 model-parallel ranks (consolidated.*.pth) and one of 8-bit
packed integers (compressed-tensors) into FOLDER, converts each in a process of its own, prints what
memory it took above its imports, and removes both.  Weights are random but repeat.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

WIDTH, INNER, HEADS, VOCABULARY = 4096, 14336, 32, 32000
_MEASURE = """
import resource, sys, time, json
import torch2mlx, torch2mlx.api, mlx_lm, mlx_lm.utils, transformers, torch, numpy
from transformers import AutoTokenizer, LlamaConfig
from torch2mlx.conversion.memory import Meter
before = Meter()
start = time.time()
peak = []
import threading
stop = threading.Event()
def watch():
    while not stop.wait(0.02):
        before.read()
thread = threading.Thread(target=watch); thread.start()
torch2mlx.convert(sys.argv[1], sys.argv[2], quantize=True, verify=False)
stop.set(); thread.join()
print(json.dumps({"seconds": time.time() - start, "peak": before.peak}))
"""


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Linear layers of the model, by Meta's names."""
    found = {}
    for i in range(layers):
        for leaf, shape in {
            "attention.wq": (WIDTH, WIDTH), "attention.wk": (WIDTH, WIDTH),
            "attention.wv": (WIDTH, WIDTH), "attention.wo": (WIDTH, WIDTH),
            "feed_forward.w1": (INNER, WIDTH), "feed_forward.w3": (INNER, WIDTH),
            "feed_forward.w2": (WIDTH, INNER),
        }.items():  # fmt: skip
            found[f"layers.{i}.{leaf}.weight"] = shape
    return found


def write_ranks(folder: Path, gigabytes: float) -> None:
    """8 files of one rank each."""
    folder.mkdir(parents=True)
    layers = max(1, round(gigabytes * 1e9 / (2 * sum(a * b for a, b in shapes(1).values()))))
    params = {"dim": WIDTH, "n_layers": layers, "n_heads": HEADS, "norm_eps": 1e-5,
              "vocab_size": VOCABULARY, "multiple_of": 256}  # fmt: skip
    (folder / "params.json").write_text(json.dumps(params))
    for rank in range(8):
        part = {}
        for name, (rows, columns) in shapes(layers).items():
            along = name.endswith(("wo.weight", "w2.weight"))
            shape = (rows, columns // 8) if along else (rows // 8, columns)
            part[name] = noise(shape, rank)
        for i in range(layers):
            for leaf in ("attention_norm", "ffn_norm"):
                part[f"layers.{i}.{leaf}.weight"] = torch.ones(WIDTH, dtype=torch.bfloat16)
        part["norm.weight"] = torch.ones(WIDTH, dtype=torch.bfloat16)
        part["tok_embeddings.weight"] = noise((VOCABULARY, WIDTH // 8), rank)
        part["output.weight"] = noise((VOCABULARY // 8, WIDTH), rank)
        torch.save(part, folder / f"consolidated.{rank:02d}.pth")


def noise(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Values that repeat after a million."""
    some = torch.randn(1 << 20, generator=torch.Generator().manual_seed(seed)) * 0.02
    count = int(np.prod(shape))
    return some.bfloat16().repeat(-(-count // len(some)))[:count].reshape(shape).clone()


def write_packed(folder: Path, gigabytes: float) -> None:
    """One layer a file, int8 with a scale for every 128."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    layers = max(1, round(gigabytes * 1e9 / sum(a * b for a, b in shapes(1).values())))
    names = {"attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj",
             "attention.wv": "self_attn.v_proj", "attention.wo": "self_attn.o_proj",
             "feed_forward.w1": "mlp.gate_proj", "feed_forward.w3": "mlp.up_proj",
             "feed_forward.w2": "mlp.down_proj"}  # fmt: skip
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16",
        "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": layers,
        "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "quantization_config": {
            "quant_method": "compressed-tensors", "format": "pack-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
                "num_bits": 8, "type": "int", "strategy": "group", "group_size": 128,
                "symmetric": True}}},
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    weight_map = {}
    for i in range(layers):
        part = {}
        for name, (rows, columns) in shapes(layers).items():
            if not name.startswith(f"layers.{i}."):
                continue
            module = f"model.layers.{i}." + names[name.split(".", 2)[2].removesuffix(".weight")]
            words = noise((rows, columns // 2), i).view(torch.int16)
            part[f"{module}.weight_packed"] = words.view(torch.int32)
            part[f"{module}.weight_scale"] = noise((rows, columns // 128), i).abs()
        for leaf in ("input_layernorm", "post_attention_layernorm"):
            part[f"model.layers.{i}.{leaf}.weight"] = torch.ones(WIDTH, dtype=torch.bfloat16)
        if i == 0:
            part["model.norm.weight"] = torch.ones(WIDTH, dtype=torch.bfloat16)
            part["model.embed_tokens.weight"] = noise((VOCABULARY, WIDTH), i)
            part["lm_head.weight"] = noise((VOCABULARY, WIDTH), i)
        file = f"model-{i + 1:05d}-of-{layers:05d}.safetensors"
        weight_map |= dict.fromkeys(part, file)
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def main() -> None:
    """Write, convert, print, remove."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=8)
    asked = parser.parse_args()
    for name, write in (("8 ranks", write_ranks), ("8-bit packed", write_packed)):
        source, out = asked.folder / "source", asked.folder / "out"
        try:
            write(source, asked.gigabytes)
            size = sum(p.stat().st_size for p in source.iterdir())
            begun = time.time()
            command = [sys.executable, "-c", _MEASURE, str(source), str(out)]
            found = subprocess.run(command, check=True, capture_output=True, text=True)
            figures = json.loads(found.stdout.strip().splitlines()[-1])
            written = sum(p.stat().st_size for p in out.iterdir())
            print(
                f"{name}: {size / 1e9:.2f} GB to {written / 1e9:.2f} GB in "
                f"{figures['seconds']:.0f} s ({time.time() - begun:.0f} s with imports), peak "
                f"memory {figures['peak'] / 1e6:.0f} MB above the imports",
                flush=True,
            )
        finally:
            for path in (source, out):
                shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    main()
