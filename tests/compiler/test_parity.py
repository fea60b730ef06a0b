"""A compiled model that differs is refused, and the message names the module at fault."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import torch
from torch import nn

import torch2mlx
from torch2mlx.compiler.lowering import registry
from torch2mlx.errors import ParityError

MULTIMODAL = """
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

def build():
    torch.manual_seed(0)
    text = dict(
        model_type="llama", hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, vocab_size=64, max_position_embeddings=64,
    )
    vision = dict(
        model_type="clip_vision_model", hidden_size=32, intermediate_size=48, image_size=16,
        num_hidden_layers=1, num_attention_heads=2, patch_size=8, projection_dim=32,
    )
    config = LlavaConfig(
        text_config=text, vision_config=vision, image_token_index=63, vision_feature_layer=-1
    )
    config.text_config.use_cache = False
    model = LlavaForConditionalGeneration(config).eval()
    for parameter in model.parameters():  # as made, an image hardly shows in the logits
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.2)
    return model
"""


@pytest.fixture
def planted(request: pytest.FixtureRequest) -> Iterator[None]:
    """Results of one operator that are off by a factor."""
    overload, factor = request.param
    right = registry.lowering_for(overload)

    def wrong(b: Any, *args: Any, **kwargs: Any) -> Any:
        return b.call(mx.multiply, right(b, *args, **kwargs), factor)

    registry._REGISTRY[overload] = wrong
    yield
    registry._REGISTRY[overload] = right


@pytest.mark.slow
@pytest.mark.parametrize("planted", [(torch.ops.aten.gelu.default, 1.003)], indirect=True)
@pytest.mark.usefixtures("planted")
def test_an_error_on_the_way_of_the_image_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: Any
) -> None:
    """The projector's activation is off by 3e-3, in a model that is otherwise right."""
    monkeypatch.chdir(tmp_path)
    Path("speaks_of_images.py").write_text(MULTIMODAL)
    ids = torch.tensor([[5, 63, 63, 63, 63, 9, 7]])
    example = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 16, 16)}
    torch.save(example, "example.pt")
    try:
        done = run_cli("convert", "speaks_of_images:build", "out", "--example", "example.pt")
    finally:
        sys.modules.pop("speaks_of_images", None)
    assert done.code == ParityError.exit_code != 0
    assert "differs from PyTorch" in done.err
    assert "multi_modal_projector" in done.err
    assert not Path("out").exists()


@pytest.mark.parametrize("planted", [(torch.ops.aten.tanh.default, 1.01)], indirect=True)
@pytest.mark.usefixtures("planted")
def test_as_many_channels_as_rows_do_not_mislead(tmp_path: Path) -> None:
    """Layers of MLX have channels last, which the shape alone does not show here."""

    class Bent(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(super().forward(x))

    net = nn.Sequential(nn.Conv2d(3, 4, 1), Bent(4, 4, 1)).eval()
    with pytest.raises(ParityError, match=r"first module that differs is 1 \(Bent"):
        torch2mlx.convert(net, tmp_path / "out", example_inputs=(torch.randn(1, 3, 4, 4),))
