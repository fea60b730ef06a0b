"""Checkpoints whose model is in Python files of their own (`auto_map`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

import torch2mlx
from torch2mlx.errors import Torch2MLXError, UnsupportedError
from torch2mlx.loading import load_language_model
from torch2mlx.verification.reference import allow_code, build_reference

MODEL_TYPE = "own_code_for_tests"
CODE = f"""
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "{MODEL_TYPE}"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits.tanh()
        return output
"""
CONFIG = {
    "model_type": MODEL_TYPE,
    "architectures": ["OwnModel"],
    "auto_map": {
        "AutoConfig": "modeling_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnModel",
    },
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 200,
}


def forget() -> None:
    """As in a process that has not run the code."""
    kind = CONFIG_MAPPING._extra_content.pop(MODEL_TYPE, None)  # type: ignore[attr-defined]
    MODEL_FOR_CAUSAL_LM_MAPPING._extra_content.pop(kind, None)  # type: ignore[attr-defined]


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """(folder, the model in PyTorch)."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "modeling_own.py").write_text(CODE)
    allow_code(CONFIG, folder)
    torch.manual_seed(0)
    reference: Any = build_reference(CONFIG)
    reference.save_pretrained(folder)
    (folder / "modeling_own.py").write_text(CODE)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    forget()
    yield folder, reference
    forget()


def test_without_permission_the_code_is_not_run(checkpoint: Any, tmp_path: Path) -> None:
    folder, _ = checkpoint
    with pytest.raises(UnsupportedError, match="with --trust-remote-code PyTorch runs it"):
        torch2mlx.convert(folder, tmp_path / "out")
    assert MODEL_TYPE not in CONFIG_MAPPING
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_with_permission_a_port_is_generated_from_it(checkpoint: Any, tmp_path: Path) -> None:
    import mlx.core as mx

    folder, reference = checkpoint
    out = tmp_path / "out"
    made: Any = torch2mlx.convert(folder, out, trust_remote_code=True)
    assert made.manifest.plan["port"] == "model.py"
    assert "tanh(" in (out / "model.py").read_text()
    assert torch2mlx.verify(folder, out, trust_remote_code=True)
    forget()
    with pytest.raises(Torch2MLXError, match="trust-remote-code"):
        load_language_model(out, tokenizer=False)
    model, _ = load_language_model(out, tokenizer=False, trust_remote_code=True)
    ids = np.random.default_rng(0).integers(5, 200, (1, 12))
    with torch.no_grad():
        expected = reference(torch.from_numpy(ids)).logits.numpy()
    assert np.allclose(np.array(model(mx.array(ids))), expected, atol=1e-4)
