from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tiny.catalogue import catalogue, family
from tiny.configs import VOCABULARY, tiny_config
from tiny.inputs import Inputs, find_inputs, fresh
from tiny.report import reason, render
from tiny.trial import evened

ENTRIES = {entry.model_type: entry for entry in catalogue()}


def test_every_type_with_a_model_class_has_its_main_task() -> None:
    assert len(ENTRIES) > 500
    tasks = {name: ENTRIES[name].classes[0] for name in ("llama", "bert", "t5", "whisper", "vit")}
    assert tasks == {
        "llama": ("causal", "LlamaForCausalLM"),
        "bert": ("masked", "BertForMaskedLM"),
        "t5": ("seq2seq", "T5ForConditionalGeneration"),
        "whisper": ("speech", "WhisperForConditionalGeneration"),
        "vit": ("vision", "ViTForImageClassification"),
    }
    assert ENTRIES["llava"].classes[0][1] == "LlavaForConditionalGeneration"


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [("mixtral", "MoE"), ("mamba2", "SSM/hybrid"), ("llava", "multimodal"), ("whisper", "audio")],
)
def test_tiny_instances_run(model_type: str, expected: str) -> None:
    import transformers

    task, name = ENTRIES[model_type].classes[0]
    config = tiny_config(model_type)
    model = getattr(transformers, name)(config).eval()
    assert sum(p.numel() for p in model.parameters()) < 2_000_000
    inputs, outputs = find_inputs(model)
    assert torch.isfinite(outputs[0]).all()
    assert family(task, model) == expected
    for value in fresh(inputs, 1).values():
        assert value.is_floating_point() or int(value.max()) < VOCABULARY


def test_fresh_text_keeps_its_placeholders() -> None:
    import transformers

    model = transformers.LlavaForConditionalGeneration(tiny_config("llava")).eval()
    inputs, _ = find_inputs(model)
    (token, number), *_ = inputs.placeholders.items()
    drawn = fresh(inputs, 1)["input_ids"]
    assert int((drawn == token).sum()) == number > 0
    assert not torch.equal(drawn, inputs.values["input_ids"])


def test_masked_autoencoders_get_their_noise() -> None:
    import transformers

    model = transformers.ViTMAEModel(tiny_config("vit_mae")).eval()
    inputs, _ = find_inputs(model)
    assert inputs.values["noise"].shape == (1, 16)
    with torch.no_grad():
        again = [model(**inputs.values)[0] for _ in range(2)]
    assert torch.equal(*again)


def test_what_normalizations_give_has_size_one() -> None:
    layers = [m for _ in range(6) for m in (nn.Conv2d(8, 8, 3), nn.ReLU(), nn.BatchNorm2d(8))]

    class Net(nn.Sequential):
        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return super().forward(pixel_values)

    torch.manual_seed(0)
    net, image = Net(*layers).eval(), torch.randn(1, 8, 20, 20)
    with torch.no_grad():
        assert float(net(image).square().mean().sqrt()) < 0.2
        evened(net, Inputs({"pixel_values": image}, {}))
        assert float(net(image).square().mean().sqrt()) == pytest.approx(1, abs=1e-3)


def test_the_page_counts_only_what_runs_in_torch() -> None:
    def record(name: str, outcome: str, **more: Any) -> dict[str, Any]:
        return {"type": name, "outcome": outcome, "family": "vision", "seconds": 1.0, **more}

    refused = {"stage": "convert", "reason": "CompileError: a size depends on the data (u0)"}
    page = render(
        [
            record("a", "right", route="compiled module", error=1e-6),
            record("b", "wrong", route="compiled module", error=1e-3),
            record("c", "failed", failure=refused, prepared=1e-6),
            record("d", "not run", failure={"stage": "forward", "reason": "x"}),
        ],
        {"torch": "2"},
    )
    assert "| vision | 3 | 1 | 33.3 % | 1 | 1 | 1 | 0 of 0 |" in page
    assert "Above 1e-4 with exit code 0: b (compiled module, 1.0e-03)." in page
    assert f"| {reason(refused['reason'])} | 1 | c |" in page
    assert "| d | x |" in page
