"""Written folders load split over two processes, as `mlx.launch` starts them on several Macs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

_RANK = """
import sys
sys.modules["torch"] = None  # of no use here, and slow to import
import mlx.core as mx
from mlx_lm.utils import sharded_load
mx.set_default_device(mx.cpu)
group = mx.distributed.init(backend="ring", strict=True)
model, _ = sharded_load(sys.argv[1], None, group)
rows = model.layers[0].self_attn.q_proj.weight.shape[0]
logits = model(mx.array([[1, 2, 3, 4, 5, 6, 7]])).astype(mx.float32)
mx.save(f"{sys.argv[2]}-{group.rank()}-of-{group.size()}-{rows}.npy", logits)
"""


@pytest.mark.slow
def test_two_processes_compute_what_torch_computes(
    checkpoint: Callable[..., Path], run_cli: Callable[..., Any], tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    source, out = checkpoint("llama"), tmp_path / "out"
    options = ("--dtype", "float32", "--max-shard-size", "500KB", "--no-verify")
    assert run_cli("convert", source, out, *options).code == 0
    assert (out / "model.safetensors.index.json").exists()
    original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        expected = original(torch.tensor([[1, 2, 3, 4, 5, 6, 7]])).logits.numpy()

    (script := tmp_path / "rank.py").write_text(_RANK)
    launcher = Path(sys.executable).with_name("mlx.launch")
    subprocess.run(
        [launcher, "-n", "2", "--", sys.executable, script, out, tmp_path / "logits"],
        check=True,
        timeout=300,
        env=os.environ | {"TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"},
    )
    half = original.config.num_attention_heads * original.model.layers[0].self_attn.head_dim // 2
    for rank in range(2):
        logits = np.load(tmp_path / f"logits-{rank}-of-2-{half}.npy")
        assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()
