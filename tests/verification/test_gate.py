from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from torch2mlx.errors import ParityError
from torch2mlx.progress import Silent
from torch2mlx.verification import gate as gates
from torch2mlx.verification.report import Comparison, LayerDifference

WINDOW = {
    "model_type": "starcoder2", "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96,
    "sliding_window": 4096, "max_position_embeddings": 16384,
}  # fmt: skip
FAILED = Comparison(
    part="twin",
    model_type="starcoder2",
    tokens=64,
    layers=(),
    logits=LayerDifference("logits", 0.3, 1.1, 0.5),
    top1=0.25,
    tolerance=1e-4,
)


def _message(monkeypatch: pytest.MonkeyPatch, found: Comparison) -> str:
    monkeypatch.setattr(gates, "run_twin", lambda config, **options: found)
    checkpoint: Any = SimpleNamespace(config=WINDOW, folder=Path())
    gate = gates.Gate(
        checkpoint,
        SimpleNamespace(),  # type: ignore[arg-type]
        (),
        memory_limit=10**9,
        max_context=None,
        trust_remote_code=False,
        progress=Silent(),
    )
    with pytest.raises(ParityError) as caught:
        gate.prove_port()
    return str(caught.value)


def test_a_failed_proof_names_the_known_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "ignores the sliding window of 4096" in _message(monkeypatch, FAILED)


def test_a_boundary_that_was_found_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bounded = replace(FAILED, agrees_up_to=4096, notes=("does not apply sliding_window=4096",))
    message = _message(monkeypatch, bounded)
    assert message.count("sliding") == 1
    assert "--max-context 4096" in message
