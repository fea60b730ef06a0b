"""Which matrices a pass needs once, and fused attention only where it gives the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torch2mlx.calibration.blocks import Block
from torch2mlx.calibration.lockstep import Units, Uses, run_in_lockstep


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.once, self.twice, self.normed = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.twice(self.twice(self.once(x)))
        return self.normed(x) / self.normed.weight.norm()


def test_a_matrix_is_given_up_only_if_a_pass_uses_it_once() -> None:
    layer = Layer()
    units = Units(layer, [n for n, p in layer.named_parameters() if p.dim() == 2])
    uses = Uses.of(lambda: layer(torch.randn(2, 8)), units)
    assert uses.once == {"once.weight"}
    assert uses.products["twice.weight"] == 2
    assert "normed.weight" in uses.others


def test_a_given_up_matrix_is_not_met_again_by_another_tensor() -> None:
    layer = Layer()
    units = Units(layer, ["once.weight", "twice.weight"])
    met = []

    def visit(found) -> None:
        met.append(found.unit.parameter)
        if found.unit.parameter == "twice.weight":
            units.release("once.weight")
            assert layer.once.weight.numel() == 0

    run_in_lockstep([[lambda: layer(torch.randn(2, 8))]], [units], visit)
    assert met == ["once.weight", "twice.weight"]


class Gated(nn.Module):
    """Two matrices with the same inputs, then one of experts that few tokens meet, then another."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down = (nn.Linear(8, 8) for _ in range(3))
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(x) * self.gate(x)
        for number, expert in enumerate(self.experts):
            mine = x[:, 0] > number / 16
            if mine.any():
                x = x.index_add(0, mine.nonzero()[:, 0], expert(x[mine]))
        return self.down(x)


@pytest.mark.parametrize("waiting", [0, 1, 2, None])
def test_passes_that_begin_anew_bring_the_same(waiting: int | None) -> None:
    torch.manual_seed(0)
    layer = Gated()
    names = [n for n, p in layer.named_parameters() if p.dim() == 2]
    inputs = [torch.randn(4, 8) for _ in range(3)]
    starts = []

    def passing(x: torch.Tensor, number: int):
        def run() -> torch.Tensor:
            starts.append(number)
            return layer(x)

        return run

    met, shared, units = [], [], Units(layer, names)

    def visit(found) -> None:
        parts = [] if found.same else [part for group in found.inputs() for part in group]
        met.append((found.unit.parameter, [part for part in parts if part is not None]))
        shared.append(found.same)
        units.weight(found.unit).mul_(0.5)  # as quantizing would

    groups = [[passing(x, 2 * i), passing(x, 2 * i + 1)] for i, x in enumerate(inputs)]
    left = run_in_lockstep(groups, [units, Units(layer, [])], visit, waiting)
    assert [name for name, _ in met] == [
        "up.weight", "gate.weight", "experts.0.weight", "experts.1.weight", "down.weight"
    ]  # fmt: skip
    assert shared == [False, True, False, False, False]
    # What each matrix met is what a pass by itself meets, with the values of that time.
    torch.manual_seed(0)
    again = Gated()
    x = torch.cat(inputs)
    with torch.no_grad():
        assert torch.equal(torch.cat(met[0][1]), x)
        again.up.weight.mul_(0.5)
        again.gate.weight.mul_(0.5)
        mixed = again.up(x) * again.gate(x)
        torch.testing.assert_close(torch.cat(met[2][1]), mixed[mixed[:, 0] > 0])
        again.experts[0].weight.mul_(0.5)
        again.experts[1].weight.mul_(0.5)
        again.down.weight.mul_(0.5)
        for i, group in enumerate(left):
            torch.testing.assert_close(group[0], again(inputs[i]))
    assert len(starts) == {0: 6 + 2 * 2, 1: 6 + 2 * 2, 2: 6 + 2, None: 6}[waiting]


@pytest.mark.parametrize(("kind", "fused"), [("llama", True), ("gemma2", False)])
def test_attention_is_fused_where_it_gives_the_same(kind: str, fused: bool) -> None:
    """PyTorch's fused attention leaves the soft cap of gemma2's logits out."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    capped = {"attn_logit_softcapping": 0.01} if kind == "gemma2" else {}
    config = AutoConfig.for_model(
        kind, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, vocab_size=64, initializer_range=0.5, **capped,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    block = Block(model.float().eval(), torch.device("cpu"))
    hidden = 3 * torch.randn(1, 12, 32)
    with torch.no_grad():
        before = block.run(hidden).hidden
        assert block.fuse_attention(hidden) == fused
        after = block.run(hidden).hidden
    torch.testing.assert_close(before, after, rtol=1e-3, atol=1e-3)
    assert block.model.config._attn_implementation == ("sdpa" if fused else "eager")
