from __future__ import annotations

import inspect
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch2mlx.compiler.export import export_module
from torch2mlx.compiler.package import compile_source
from torch2mlx.compiler.program import build_program
from torch2mlx.compiler.reading import build_graph
from torch2mlx.errors import CompileError, UnsupportedError

LIBRARY = torch.library.Library("torch2mlx_test", "DEF")
for _name in ("first", "second"):
    LIBRARY.define(f"{_name}(Tensor x) -> Tensor")
    LIBRARY.impl(_name, lambda x: x.clone(), "CompositeExplicitAutograd")


def line_of(function: Any, text: str) -> int:
    lines, start = inspect.getsourcelines(function)
    return start + next(i for i, line in enumerate(lines) if text in line)


def operators(program: Any) -> set[str]:
    return {str(n.target) for n in program.graph.nodes if n.op == "call_function"}


def test_composites_stay_whole_and_mutation_becomes_functional() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.norm = nn.LayerNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.linear(x))
            x.add_(1)
            x = x[None]
            return nn.functional.scaled_dot_product_attention(x, x, x)

    found = operators(export_module(Model().eval(), (torch.randn(2, 4),)))
    assert "aten.linear.default" in found
    assert "aten.layer_norm.default" in found
    assert "aten.scaled_dot_product_attention.default" in found
    assert not any(name.split(".")[1].endswith("_") for name in found if name.startswith("aten"))


def test_meta_modules_export() -> None:
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)).eval()
    program = export_module(module, (torch.empty(2, 4, device="meta"),))
    graph = build_graph(program, "Sequential")
    assert [w.type.shape for w in graph.weights] == [(8, 4), (8,), (2, 8), (2,)]
    assert len(build_program(graph).steps) == 2


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = x + 1
        if x.max() > 3:
            x = x * 2
        return x


def test_data_dependent_branches_name_the_users_line() -> None:
    with pytest.raises(CompileError) as caught:
        export_module(Branching(), (torch.randn(3),))
    assert f"{__file__}:{line_of(Branching, 'x.sum() > 0')}" in str(caught.value)
    assert isinstance(caught.value, UnsupportedError)
    assert str(caught.value).startswith("Branching cannot be compiled")


class TwoUnknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.ops.torch2mlx_test.first(x)
        x = torch.relu(x)
        return torch.ops.torch2mlx_test.second(x)


def test_all_operators_without_lowering_are_reported_at_once() -> None:
    graph = build_graph(export_module(TwoUnknown(), (torch.randn(3),)), "TwoUnknown")
    with pytest.raises(CompileError) as caught:
        build_program(graph)
    assert len(caught.value.reasons) == 2
    for reason, name in zip(caught.value.reasons, ("first", "second"), strict=True):
        assert f"torch2mlx_test.{name}.default" in reason
        assert f"{__file__}:{line_of(TwoUnknown, name)}" in reason


class Item(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.sum().item()


def test_numbers_from_data_are_refused_with_their_line() -> None:
    with pytest.raises(CompileError) as caught:
        build_graph(export_module(Item(), (torch.randn(3),)), "Item")
    assert f"{__file__}:{line_of(Item, '.item()')}" in str(caught.value)


def test_errors_of_the_module_itself_are_told_with_their_line() -> None:
    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ torch.ones(7)

    with pytest.raises(CompileError, match=r"test_export\.py:\d+"):
        export_module(Wrong(), (torch.randn(2, 3),))


class UpToEight(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.shape[0] <= 8 else x - 1


def test_a_range_that_a_dynamic_extent_must_keep_is_told() -> None:
    shapes = {"x": {0: torch.export.Dim("batch")}}
    with pytest.raises(CompileError) as caught:
        export_module(UpToEight(), (torch.randn(3, 2),), dynamic_shapes=shapes)
    (reason,) = caught.value.reasons
    assert "extent batch" in reason
    assert "batch = Dim('batch', max=8)" in reason
    assert f"{__file__}:{line_of(UpToEight, '<= 8')}" in reason


class Constant(nn.Module):
    def __init__(self, reshapes: bool) -> None:
        super().__init__()
        self.reshapes = reshapes

    def forward(self, x: Tensor) -> Tensor:
        if self.reshapes:
            return x.reshape(3, 2) + 1
        return x + len(x)


@pytest.mark.parametrize(("reshapes", "code"), [(True, "x.reshape(3, 2)"), (False, "len(x)")])
def test_the_line_that_makes_a_dynamic_extent_constant(reshapes: bool, code: str) -> None:
    shapes = {"x": {0: torch.export.Dim("batch")}}
    with pytest.raises(CompileError) as caught:
        export_module(Constant(reshapes), (torch.randn(3, 2),), dynamic_shapes=shapes)
    (reason,) = caught.value.reasons
    assert f"makes a constant of it (3), at {__file__}:{line_of(Constant, code)}" in reason


class Halves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, 3, 2, x.shape[2] // 2)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Conv1d(3, 4, 5, 2, 2), "it does so from 3 on: time = Dim('time', min=3)"),
        (Halves(), "takes multiples only, at {file}:{line} (return x.view(2, 3, 2, x.shape[2]"),
    ],
)
def test_what_a_dynamic_extent_must_be_is_told(module: nn.Module, words: str) -> None:
    shapes = ({2: torch.export.Dim("time")},)
    with pytest.raises(CompileError) as caught:
        export_module(module, (torch.randn(2, 3, 16),), dynamic_shapes=shapes)
    (reason,) = caught.value.reasons
    assert words.format(file=__file__, line=line_of(Halves, "x.view")) in reason
    bounds = ({2: torch.export.Dim("time", min=3)},)
    if isinstance(module, nn.Conv1d):
        export_module(module, (torch.randn(2, 3, 16),), dynamic_shapes=bounds)
    else:
        assert "--dynamic argument:axis=2*time" in reason


class Likelihood(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.distributions.Normal(x, x.exp()).log_prob(x + 1)


def test_distributions_do_not_check_their_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)
    found = operators(export_module(Likelihood(), (torch.randn(3, 2),)))
    assert "aten.log.default" in found
    assert torch.distributions.Distribution._validate_args


def test_a_dynamic_extent_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_module(
            nn.Linear(2, 2), (torch.randn(3, 2),), None, {"input": {0: torch.export.Dim("batch")}}
        )


class Inner(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.max().item() > 3:
            x = x * 2
        return torch.ops.torch2mlx_test.second(x)


class Everything(nn.Module):
    """Two unsupported operators, two branches on data and a size that depends on it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.inner = Inner()

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        if x.sum() > 0:
            x = x + 1
        y = torch.ops.torch2mlx_test.first(x)
        return self.inner(y) + x[x > 0].sum()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_every_reason_of_a_module_at_once(device: str, capfd: pytest.CaptureFixture[str]) -> None:
    with torch.device(device):
        module = Everything().eval()
    with pytest.raises(CompileError) as caught:
        compile_source(module, (torch.rand(3, 3),))
    places = [
        line_of(Everything, "x.sum() > 0"),
        line_of(Everything, "test.first"),
        line_of(Everything, "x[x > 0]"),
        line_of(Inner, "item() > 3"),
        line_of(Inner, "test.second"),
    ]
    assert len(caught.value.reasons) == len(places), caught.value
    for place in places:
        assert sum(f"{__file__}:{place}" in r for r in caught.value.reasons) == 1, caught.value
    assert "forward(self" not in capfd.readouterr().err
