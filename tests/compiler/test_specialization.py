"""Sizes and branches that follow from values of the inputs, as the example has them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torch2mlx
from torch2mlx.compiler.parity.running import import_model
from torch2mlx.compiler.specialization import grouped_experts
from torch2mlx.errors import CompileError


class Patches(nn.Module):
    """Patches of images of several sizes, and some of them chosen by a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(4, 4)

    def forward(self, pixels: Tensor, grid: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        x = self.project(pixels)
        if mask.any():
            x = x * 2
        lengths = torch.repeat_interleave(grid[:, 1] * grid[:, 2], grid[:, 0])
        ends = nn.functional.pad(lengths.cumsum(0), (1, 0)).unique_consecutive()
        images = x.split((ends[1:] - ends[:-1]).tolist())
        height = torch.tensor([g[1] for g in grid])
        padded = nn.utils.rnn.pad_sequence(images, batch_first=True, padding_value=-1.0)
        return x[mask], torch.where(mask)[0], padded, images[0] * height.max()


def _example() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(18, dtype=torch.bool)
    mask[[1, 4, 17]] = True
    return {
        "pixels": torch.randn(18, 4, generator=generator),
        "grid": torch.tensor([[1, 2, 3], [1, 4, 3]]),
        "mask": mask,
    }


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    module = Patches().eval()
    folder = tmp_path_factory.mktemp("compiled") / "out"
    result = torch2mlx.convert(module, folder, example_kwargs=_example())
    assert result.cases == ("example", "fresh values")
    assert result.notes[0].startswith("grid: fixed")
    assert "`grid`: int64[2, 3], with the values of the example" in (
        folder / "README.md"
    ).read_text(encoding="utf-8")
    return module, import_model(folder).load(str(folder))


def _call(model: Any, values: dict[str, Tensor]) -> Any:
    return model(**{k: mx.array(v.numpy()) for k, v in values.items()})


def test_other_places_under_the_mask(patches: tuple[nn.Module, Any]) -> None:
    module, model = patches
    values = {**_example(), "mask": torch.arange(18).remainder(6) == 2}
    with torch.no_grad():
        wanted = module(**values)
    for want, got in zip(wanted, _call(model, values), strict=True):
        np.testing.assert_allclose(np.array(got), want.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("grid", torch.tensor([[1, 3, 3], [1, 3, 3]]), r"grid: \[\[1, 3, 3\], \[1, 3, 3\]\]"),
        ("mask", torch.arange(18) < 4, r"test_specialization.py:\d+ .*: 4, .* for 3"),
    ],
)
def test_values_of_another_example_are_refused(
    patches: tuple[nn.Module, Any], name: str, value: Tensor, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        _call(patches[1], {**_example(), name: value})


class Threshold(nn.Module):
    """A number of rows that follows from what the weights make of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x[self.score(x)[:, 0] > 0]


class Measured(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.mean() > 0.1 else x


@pytest.mark.parametrize("module", [Threshold(), Measured()])
def test_what_weights_or_measurements_decide_is_refused(module: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"test_specialization\.py"):
        torch2mlx.convert(module.eval(), tmp_path / "out", example_inputs=(torch.randn(5, 4),))


class Counter(nn.Module):
    """Leaves something behind, which the next call may read."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.reads, self.last = reads, None

    def forward(self, x: Tensor) -> Tensor:
        before = self.last
        self.last = x.sum()
        return x if before is None or not self.reads else x + before


def test_state_matters_only_where_it_is_read(tmp_path: Path) -> None:
    torch2mlx.convert(Counter(False), tmp_path / "out", example_inputs=(torch.randn(3),))
    with pytest.raises(CompileError, match="last: assigned by forward"):
        torch2mlx.convert(Counter(True), tmp_path / "other", example_inputs=(torch.randn(3),))


class Scales(nn.Module):
    """Says once more on which device and of which dtype its inner module is."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.inner = self.inner.to(torch.float32)
        made: Tensor = self.inner.to(x.device)(x)
        return made


def test_moves_to_where_a_module_is_change_nothing(tmp_path: Path) -> None:
    module, x = Scales().eval(), torch.randn(2, 3)
    torch2mlx.convert(module, tmp_path / "out", example_inputs=(x,))
    assert module.to(torch.float64).inner.weight.dtype == torch.float64


_SIZES = {"num_experts": 4, "expert_capacity": 3, "d_kv": 4, "d_ff": 16, "num_heads": 2}


_STEP = {"num_local_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 10}


@pytest.mark.parametrize(
    ("file", "config", "experts", "sizes"),
    [
        ("jetmoe", "JetMoeConfig", "JetMoeMoE", {"hidden_size": 16, "num_local_experts": 4}),
        (
            "switch_transformers",
            "SwitchTransformersConfig",
            "SwitchTransformersSparseMLP",
            {"d_model": 16, **_SIZES},
        ),
        ("step3p7", "Step3p7TextConfig", "Step3p7Experts", {"hidden_size": 16, **_STEP}),
    ],
)
def test_experts_that_loop_are_computed_without_counting(
    file: str, config: str, experts: str, sizes: dict[str, int]
) -> None:
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    source = import_module(f"transformers.models.{file}.modeling_{file}")
    module = getattr(source, experts)(getattr(source, config)(**sizes)).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    given = [torch.randn(2, 9, 16)]
    if hasattr(module, "_apply_gate"):  # takes rows, and what a router chose
        choice = torch.stack([torch.randperm(6)[:2] for _ in range(18)])
        given = [given[0].flatten(0, 1), choice, torch.rand(18, 2)]
    with torch.no_grad():
        want = module(*given)
        with grouped_experts(module):
            torch.testing.assert_close(module(*given), want)
        torch.testing.assert_close(module(*given), want, rtol=0, atol=0)


class _FullRowsEmptied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.scores(x) < 0
        hidden[torch.where(hidden.sum(-1) == hidden.shape[-1])] = False
        return x.masked_fill(hidden, 0.5)


def test_numbers_written_under_a_mask_need_no_count(tmp_path: Path) -> None:
    """Weights decide which rows are emptied; their number is free."""
    torch.manual_seed(0)
    module, x = _FullRowsEmptied().eval(), torch.randn(3, 5, 2)
    assert bool((module.scores(x) < 0).all(-1).any())
    made = torch2mlx.convert(module, tmp_path / "out", example_inputs=(x,))
    assert made.error == 0
    assert "nonzero" not in (tmp_path / "out" / "model.py").read_text()


def test_indexers_choose_the_same_tokens_with_all_pools() -> None:
    from transformers.models.glm5_next import modeling_glm5_next as glm
    from transformers.models.glm5_next.configuration_glm5_next import Glm5NextTextConfig

    from torch2mlx.compiler.specialization import all_pools

    torch.manual_seed(0)  # many heads: with few, scores are tied at zero
    config = Glm5NextTextConfig(
        hidden_size=32,
        q_lora_rank=16,
        index_n_heads=32,
        index_head_dim=8,
        index_topk=8,
        index_kpool=4,
    )
    indexer: Any = glm.Glm5NextTextIndexer(config, 0)
    for parameter in indexer.parameters():
        torch.nn.init.normal_(parameter)
    hidden, queries = torch.randn(2, 22, 32), torch.randn(2, 22, 16)
    mask = torch.ones(2, 22, dtype=torch.bool)
    mask[1, :5] = False
    want = indexer(hidden, queries, mask, None)
    with all_pools(indexer):
        found = indexer(hidden, queries, mask, None)
    pooled = indexer.get_pooled_states(torch.cat([torch.randn(2, 22, 16), mask[..., None]], -1))
    assert pooled[0].shape[1] == 5  # the sixth is incomplete
    assert torch.equal(want.sort(-1).values, found.sort(-1).values)


class Counted(nn.Module):
    """A size that follows from a mask and a constant."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        limits = torch.where(mask > 0, torch.tensor([5, 2, 4, 3]), 0)
        if limits.max() > 3:
            return x * 2
        return x


def test_a_branch_from_a_constant_of_the_code(tmp_path: Path) -> None:
    auto = torch.export.Dim.AUTO
    x, mask = torch.randn(2, 9), torch.tensor([[0, 1, 1, 0], [0, 0, 0, 1]])
    torch2mlx.convert(
        Counted().eval(), tmp_path / "out", example_kwargs={"x": x, "mask": mask},
        dynamic_shapes={"x": {0: auto}, "mask": {0: auto}},
    )  # fmt: skip
    loaded = import_model(tmp_path / "out").load(str(tmp_path / "out"))
    for case in (mask, mask.flip(0)):
        found = loaded(mx.array(x.numpy()), mx.array(case.numpy()))
        assert np.allclose(np.array(found), 2 * x.numpy())
