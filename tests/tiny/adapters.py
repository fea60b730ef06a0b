"""Tiny adapters, by PEFT and as mlx-lm writes them."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

LINEAR = ["q_proj", "down_proj"]


def trained(model, folder, **options):
    """An adapter that PEFT saved, its matrices random, and the model it merges to."""
    peft = pytest.importorskip("peft")
    settings = {"r": 4, "lora_alpha": 8, "target_modules": LINEAR, **options}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                value.add_(0.05 * torch.randn(value.shape))
    wrapped.save_pretrained(folder)
    return wrapped.merge_and_unload().state_dict()


def model_of(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def mlx_adapter(folder, kind="lora", **settings):
    generator = torch.Generator().manual_seed(2)
    tensors = {}
    for path, (rows, columns) in {
        "model.layers.0.self_attn.q_proj": (128, 128),
        "model.layers.2.mlp.down_proj": (128, 256),
    }.items():
        tensors[f"{path}.lora_a"] = torch.randn(columns, 4, generator=generator) * 0.1
        tensors[f"{path}.lora_b"] = torch.randn(4, rows, generator=generator) * 0.1
        if kind == "dora":
            tensors[f"{path}.m"] = 1 + torch.rand(rows, generator=generator)
    folder.mkdir()
    save_file(tensors, folder / "adapters.safetensors")
    parameters = {"rank": 4, "scale": 10.0, "dropout": 0.0, **settings}
    parameters["keys"] = ["self_attn.q_proj", "mlp.down_proj"]
    config = {"fine_tune_type": kind, "num_layers": 3, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return tensors
