"""From written MLX files back to the tensors of the source: packed, permuted, joined, stacked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packed_checkpoints import awq, bitsandbytes, compressed, fp8, repacked
from releases import meta_release, mixtral_release
from safetensors.torch import load_file

from torch2mlx.architectures.port import load_port
from torch2mlx.conversion.executor import execute
from torch2mlx.dtypes import to_torch
from torch2mlx.planning.expressions import sources_of
from torch2mlx.planning.inverse import restore_state
from torch2mlx.planning.plan import build_plan
from torch2mlx.quantization.kernel import dequantize_rows
from torch2mlx.quantization.recipe import QuantOptions
from torch2mlx.quantization.scheme import Scheme
from torch2mlx.sources import open_checkpoint
from torch2mlx.sources.safetensors import SafetensorsSource
from torch2mlx.verification.audit import audit
from torch2mlx.verification.reference import read_state

INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}


def packed(make: Any, base: str, dtype: str) -> Any:
    def write(folder: Path, checkpoint: Any) -> None:
        repacked(checkpoint(base, dtype), folder, *make())

    return write


def release(make: Any, base: str, *arguments: Any) -> Any:
    def write(folder: Path, checkpoint: Any) -> None:
        make(folder, load_file(checkpoint(base, "bfloat16") / "model.safetensors"), *arguments)

    return write


# name → (what writes it, whether codes are kept on their grid)
KINDS = {
    "awq": (packed(awq, "llama", "float16"), True),
    "pack-quantized experts": (
        packed(lambda: compressed("pack-quantized", INT4), "mixtral", "bfloat16"),
        True,
    ),
    "fp8 blocks, experts": (packed(fp8, "deepseek_v3", "float32"), False),
    "bitsandbytes nf4": (packed(lambda: bitsandbytes("nf4"), "llama", "float32"), False),
    "Llama of 4 ranks": (release(meta_release, "llama", 4), False),
    "Mixtral with fused experts": (release(mixtral_release, "mixtral"), False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_comes_back_from_the_written_files(
    kind: str, checkpoint: Any, tmp_path: Path
) -> None:
    write, keeps = KINDS[kind]
    if kind.startswith("bitsandbytes"):
        pytest.importorskip("bitsandbytes")
    write(tmp_path / "source", checkpoint)
    opened = open_checkpoint(tmp_path / "source")
    quantize = QuantOptions(Scheme(4, 64)) if keeps else None
    plan = build_plan(opened, load_port(opened.config), quantize=quantize, keep_grids=keeps)
    (tmp_path / "out").mkdir()
    files = execute(plan, opened.source, tmp_path / "out")
    report = audit(plan.outputs, files, opened.source)
    assert report.passed, report.first_failure
    assert ("repacked" in report.counts) == keeps
    assert report.recomputed == 0

    written = SafetensorsSource(files)
    outputs = {output.name: output for output in plan.outputs}

    def read(name: str, start: int, stop: int) -> Any:
        output = outputs[name]
        parts = {s.name.rpartition(".")[2]: written.read(s.name, start, stop) for s in output.specs}
        if output.scheme is not None:
            return dequantize_rows(
                parts, written.tensors[f"{stem(name)}.scales"].dtype, output.scheme
            )
        (bits,) = parts.values()
        return to_torch(bits, output.expr.dtype).float().numpy()

    # Of a release the tensors of each file, of packed weights the values that they stand for.
    expressions = {name: output.expr for name, output in outputs.items()}
    state = opened.state
    if opened.kind == "original":
        state = {leaf.name: leaf for e in expressions.values() for leaf in sources_of(e)}
        others = opened.source.tensors.keys() - state.keys()
        # Computed from the config, or the same in the file of every rank.
        assert all(n.endswith(("rope.freqs", "norm.weight")) for n in others), others
    values = read_state(state, opened.source)
    restored = {r.name: r for r in restore_state(expressions, read, state)}
    assert restored.keys() == values.keys()
    for name, tensor in values.items():
        assert restored[name].covered is None, (name, restored[name].reason)
        assert np.array_equal(restored[name].values, tensor.numpy()), name
    if kind == "Llama of 4 ranks":
        file = torch.load(tmp_path / "source" / "consolidated.03.pth")
        wq = restored["03:layers.1.attention.wq.weight"].values
        assert np.array_equal(wq, file["layers.1.attention.wq.weight"].float().numpy())


def stem(name: str) -> str:
    return name.rpartition(".")[0]
