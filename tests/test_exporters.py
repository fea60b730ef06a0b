"""transformers users find the backend by their own API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel
from transformers.exporters.auto import AutoHfExporter
from transformers.exporters.base import ExportedModel

import torch2mlx.exporters

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 50,
    "max_position_embeddings": 32,
}


def test_an_export_runs_is_saved_and_read_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = BertModel(BertConfig(**TINY))
    model.eval()
    inputs: dict[str, Any] = {"input_ids": torch.randint(3, 50, (2, 7))}
    exporter: Any = AutoHfExporter.from_config({"export_format": "mlx"})
    assert isinstance(exporter, torch2mlx.exporters.MlxExporter)
    exported: Any = exporter.export(model, inputs, {})
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state
    assert torch.allclose(exported(**inputs).last_hidden_state, expected, atol=1e-5)
    exported.save_pretrained(tmp_path)
    again: Any = ExportedModel.from_pretrained(tmp_path)
    other: dict[str, Any] = {"input_ids": torch.randint(3, 50, (2, 7))}
    with torch.no_grad():
        expected = model(**other).last_hidden_state
    assert torch.allclose(again(**other).last_hidden_state, expected, atol=1e-5)
