"""Where the reference does as a model's authors, against their formula."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers

from torch2mlx.verification.corrections import corrections
from torch2mlx.verification.reference import build_reference

SHORT, LONG = [1.0, 1.5, 2.0, 2.5], [3.0, 4.0, 5.0, 6.0]
CONFIG = {
    "model_type": "phimoe", "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 64, "num_local_experts": 4,
    "max_position_embeddings": 64,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": SHORT,
        "long_factor": LONG, "short_mscale": 1.1, "long_mscale": 1.3,
        "original_max_position_embeddings": 8,
    },
}  # fmt: skip


@pytest.mark.parametrize(("length", "factors", "scale"), [(8, SHORT, 1.1), (9, LONG, 1.3)])
@pytest.mark.parametrize("loaded", [False, True])
def test_phimoe_takes_the_long_factors_beyond_its_length(
    length: int, factors: list[float], scale: float, loaded: bool
) -> None:
    model = build_reference(CONFIG)
    if loaded:
        model = build_reference(CONFIG, model.state_dict())
    rotary = copy.deepcopy(model.model.rotary_emb)
    at = torch.arange(length)
    cos, sin = rotary(torch.zeros(1), at[None])
    # Microsoft's: 1 / (factor * theta ** (2 i / width)), sines and cosines times the scale.
    inverse = 1 / (torch.tensor(factors) * 10_000.0 ** (torch.arange(0, 8, 2) / 8))
    angles = torch.outer(at.float(), inverse).repeat(1, 2)
    torch.testing.assert_close(cos[0], angles.cos() * scale)
    torch.testing.assert_close(sin[0], angles.sin() * scale)


def test_the_correction_is_needed_and_told() -> None:
    """Where transformers does so itself again, `correct` can go."""
    settings = transformers.models.auto.CONFIG_MAPPING["phimoe"].from_dict(copy.deepcopy(CONFIG))
    rotary = transformers.AutoModelForCausalLM.from_config(settings).model.rotary_emb
    _, sin = rotary(torch.zeros(1), torch.arange(9)[None])
    assert torch.allclose(
        sin[0, 8, 3], (8 / (SHORT[3] * 10_000**0.75) * torch.ones(())).sin() * 1.3
    )
    assert "long rotary factors" in corrections(CONFIG)[0]
    plain = {**CONFIG, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    assert corrections(plain) == ()
