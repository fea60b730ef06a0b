"""Generated code beside MLX written by hand, in one run; and what compiling 7B costs.

    python benchmarks/compiled.py [--full] [--repeats 15] [--only bert ...]

Each model is built by transformers with random weights, compiled, and run in turns with a model
written by hand that has the same weights: the ones in `handwritten/`, and mlx-lm's Llama.  The
ratio is the median over pairs of neighbouring runs, so a busy machine slows both; on a CPU that
of processor time is steadier.  Both must give the same outputs.  `--full` takes the shapes of
BERT-base, ViT-base, ResNet-50 and Llama-3.2-1B; without it they are smaller.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import torch
from mlx.utils import tree_flatten

from handwritten.bert import BertModel
from handwritten.resnet import ResNet
from handwritten.vit import ViTModel
from torch2mlx.compiler.package import compile_module, compile_source
from torch2mlx.compiler.parity.running import import_model


@dataclass(frozen=True)
class Case:
    """A module of torch, an example of its inputs, and the model written by hand."""

    module: torch.nn.Module
    inputs: dict[str, torch.Tensor]
    handwritten: Any
    output: str = "logits"


def bert(full: bool) -> Case:
    """BERT with an attention mask that hides nothing."""
    from transformers import BertConfig
    from transformers import BertModel as Original

    dims, layers, heads, length = (768, 12, 12, 128) if full else (192, 4, 6, 64)
    config = BertConfig(
        hidden_size=dims,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * dims,
        vocab_size=30522 if full else 1000,
    )
    hand = BertModel(config.vocab_size, 512, layers, dims, 4 * dims, heads)
    ids = torch.randint(config.vocab_size, (1, length))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return Case(Original(config), inputs, hand, "last_hidden_state")


def vit(full: bool) -> Case:
    """A vision transformer with its pooler."""
    from transformers import ViTConfig
    from transformers import ViTModel as Original

    image, patch, dims, layers, heads = (224, 16, 768, 12, 12) if full else (64, 8, 192, 4, 6)
    config = ViTConfig(
        image_size=image,
        patch_size=patch,
        hidden_size=dims,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * dims,
    )
    hand = ViTModel(image, patch, layers, dims, 4 * dims, heads)
    inputs = {"pixel_values": torch.randn(1, 3, image, image)}
    return Case(Original(config), inputs, hand, "last_hidden_state")


def resnet(full: bool) -> Case:
    """ResNet with bottleneck layers."""
    from transformers import ResNetConfig, ResNetForImageClassification

    depths = [3, 4, 6, 3]
    width, widths = (64, [256, 512, 1024, 2048]) if full else (16, [64, 128, 256, 512])
    image = 224 if full else 96
    config = ResNetConfig(embedding_size=width, hidden_sizes=widths, depths=depths, num_labels=1000)
    hand = ResNet(width, widths, depths, 1000)
    inputs = {"pixel_values": torch.randn(1, 3, image, image)}
    return Case(ResNetForImageClassification(config), inputs, hand)


def llama(full: bool) -> Case:
    """Llama without a cache, beside mlx-lm's."""
    from mlx_lm.models import llama as port
    from transformers import LlamaConfig, LlamaForCausalLM

    dims, hidden, layers, heads, groups = (2048, 8192, 16, 32, 8) if full else (256, 704, 4, 8, 4)
    vocabulary, length = (128256, 64) if full else (2000, 64)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=dims,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        use_cache=False,
    )
    hand = port.Model(
        port.ModelArgs(
            model_type="llama",
            hidden_size=dims,
            num_hidden_layers=layers,
            intermediate_size=hidden,
            num_attention_heads=heads,
            num_key_value_heads=groups,
            rms_norm_eps=config.rms_norm_eps,
            vocab_size=vocabulary,
            rope_theta=10000.0,
            tie_word_embeddings=False,
        )
    )
    ids = torch.randint(vocabulary, (1, length))
    return Case(LlamaForCausalLM(config), {"input_ids": ids}, hand)


CASES: dict[str, Callable[[bool], Case]] = {
    "bert": bert,
    "vit": vit,
    "resnet": resnet,
    "llama": llama,
}


def operations(output: mx.array) -> int:
    """The number of operations that make an array."""
    with tempfile.NamedTemporaryFile("r", suffix=".dot") as file:
        mx.export_to_dot(file.name, output)
        return file.read().count("shape=rectangle")


def compare(name: str, full: bool, repeats: int) -> str:
    """A row of the table."""
    torch.manual_seed(0)
    case = CASES[name](full)
    module = case.module.eval()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        made = compile_module(module, Path(folder) / "out", (), case.inputs)
        seconds = time.perf_counter() - start
        generated = import_model(made.folder).load(made.folder)
    weights = dict(tree_flatten(generated.parameters()))
    wanted = dict(tree_flatten(case.handwritten.parameters()))
    case.handwritten.load_weights([(k, v) for k, v in weights.items() if k in wanted])
    case.handwritten.eval()
    inputs = {k: mx.array(v.numpy()) for k, v in case.inputs.items()}

    def ours() -> mx.array:
        return generated(**inputs)[case.output]

    def theirs() -> mx.array:
        result = case.handwritten(*inputs.values())
        return result[0] if isinstance(result, tuple) else result

    counts = operations(ours()), operations(theirs())
    expected, found = theirs().flatten(), ours().flatten()
    error = float(mx.linalg.norm(expected - found) / mx.linalg.norm(expected))
    if not error < 1e-4:
        raise SystemExit(f"{name}: the two differ by {error:.1e}")
    wall: list[tuple[float, float]] = []
    busy: list[tuple[float, float]] = []
    for turn in range(repeats + 2):
        pair, work = [0.0, 0.0], [0.0, 0.0]
        for which in (0, 1) if turn % 2 else (1, 0):
            start, worked = time.perf_counter(), time.process_time()
            mx.eval((ours, theirs)[which]())
            pair[which] = time.perf_counter() - start
            work[which] = time.process_time() - worked
        wall.append((pair[0], pair[1]))
        busy.append((work[0], work[1]))
    a, b = (1e3 * statistics.median(t[i] for t in wall[2:]) for i in (0, 1))
    ratios = [statistics.median(a / b for a, b in times[2:]) for times in (wall, busy)]
    return (
        f"| {name} | {a:.1f} | {b:.1f} | {ratios[0]:.2f} | {ratios[1]:.2f} | "
        f"{counts[0]} / {counts[1]} | {error:.0e} | {seconds:.1f} |"
    )


def compile_7b() -> None:
    """Compile Llama-2-7B's shape from a module without data; print time, memory, lines."""
    from transformers import LlamaConfig, LlamaForCausalLM

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with torch.device("meta"):
        config = LlamaConfig(use_cache=False)
        module = LlamaForCausalLM(config).eval()
    parameters = sum(p.numel() for p in module.parameters()) / 1e9
    ids = torch.zeros(1, 16, dtype=torch.int64, device="meta")
    shapes = {"input_ids": {1: torch.export.Dim("length", max=4096)}}
    start, busy = time.perf_counter(), time.process_time()
    made = compile_source(module, (), {"input_ids": ids}, shapes)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = made.generated.source.count("\n")
    print(
        f"Llama, {parameters:.1f}B parameters, {config.num_hidden_layers} layers, no data: "
        f"{seconds:.0f} s ({busy:.0f} s of processor time), "
        f"peak {peak / 2**20:.2f} GB ({before / 2**20:.2f} GB after imports), "
        f"{lines} lines"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--full", action="store_true", help="the shapes of the real models")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", nargs="+", choices=[*CASES, "7b"], default=[*CASES, "7b"])
    parser.add_argument("--compile-7b", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.compile_7b:
        compile_7b()
        return
    rows = [name for name in given.only if name in CASES]
    if rows:
        print(
            "| model | generated ms | by hand ms | ratio | of processor time | operations | "
            "distance | compile s |"
        )
        print("|---|---|---|---|---|---|---|---|")
    for name in rows:
        print(compare(name, given.full, given.repeats), flush=True)
    if "7b" in given.only:
        # A process of its own, so that the peak is its own.
        subprocess.run([sys.executable, __file__, "--compile-7b"], check=True)


if __name__ == "__main__":
    main()
