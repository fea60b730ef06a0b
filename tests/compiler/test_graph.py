from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from torch2mlx.compiler.dimensions import dimension_names
from torch2mlx.compiler.export import export_module
from torch2mlx.compiler.graph import Graph, Ref, references, verify
from torch2mlx.compiler.package import compile_module, tied_names
from torch2mlx.compiler.reading import build_graph
from torch2mlx.compiler.symbolic import SymbolicInt
from torch2mlx.errors import CompileError


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(10, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.tokens.weight
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, ids: Tensor, scale: dict[str, Tensor]) -> dict[str, object]:
        self.seen += 1
        x = self.norm(self.tokens(ids)) * scale["value"]
        first, second = x.chunk(2, dim=-1)
        return {"logits": self.head(x), "parts": (first, second), "length": ids.shape[1] + 1}


@pytest.fixture(scope="module")
def graph() -> Graph:
    module = Model().eval()
    shapes = {
        "ids": {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")},
        "scale": {"value": None},
    }
    args = (torch.zeros(2, 5, dtype=torch.long), {"value": torch.ones(4)})
    program = export_module(module, args, dynamic_shapes=shapes)
    return build_graph(program, "Model", tied_names(module), dimension_names(program, shapes))


def test_inputs_have_the_users_names_and_dimensions(graph: Graph) -> None:
    assert [i.name for i in graph.inputs] == ["ids", "scale_value"]
    assert str(graph.inputs[0].type) == "int64[batch, length]"
    assert graph.inputs[0].type.shape == (2, 5)
    assert all(isinstance(n, SymbolicInt) for n in graph.inputs[0].type.shape)


def test_tied_weights_are_one(graph: Graph) -> None:
    names = {w.name: w for w in graph.weights}
    assert set(names) == {"tokens.weight", "norm.weight", "norm.bias", "seen"}
    assert names["tokens.weight"].aliases == ("head.weight",)
    assert names["seen"].kind == "buffer"
    linear = next(n for n in graph.nodes if "linear" in str(n.target))
    assert Ref("tokens.weight") in linear.args


def test_mutated_buffers_are_states(graph: Graph) -> None:
    made = {n.name: n for n in graph.nodes}
    assert str(made[graph.states["seen"].name].target) == "aten.add.Tensor"


def test_nodes_know_module_and_line(graph: Graph) -> None:
    norm = next(n for n in graph.nodes if "layer_norm" in str(n.target))
    assert norm.origin.path == "norm"
    assert norm.origin.frames[-1].class_name == "torch.nn.modules.normalization.LayerNorm"
    assert norm.origin.file == __file__
    assert [f.path for f in norm.origin.frames] == ["", "norm"]


def test_ints_are_expressions_and_not_nodes(graph: Graph) -> None:
    assert not any("sym_size" in str(n.target) for n in graph.nodes)
    length = graph.outputs[-1]
    assert isinstance(length, SymbolicInt)
    assert int(length) == 6
    assert eval(length.expression, {"length": 9}) == 10


def test_parts_of_a_tuple_are_results_of_one_node(graph: Graph) -> None:
    first, second = graph.outputs[1:3]
    assert (first.name, first.index, second.index) == (second.name, 0, 1)


def test_printed_graph_shows_types_and_places(graph: Graph) -> None:
    lines = str(graph).splitlines()
    assert lines[0] == "graph Model"
    assert "  input %ids: int64[batch, length]" in lines
    assert "  parameter %tokens.weight: float32[10, 4] (also head.weight)" in lines
    (norm,) = (line for line in lines if "aten.layer_norm" in line)
    assert "float32[batch, length, 4]" in norm
    assert f"norm (torch.nn.modules.normalization.LayerNorm) {__file__}:" in norm
    assert lines[-1].startswith("  return %linear, %split, %split.1, ")


def test_verify_names_what_a_pass_broke(graph: Graph) -> None:
    verify(graph)
    with pytest.raises(ValueError, match="before it is made"):
        verify(replace(graph, nodes=graph.nodes[::-1]))
    with pytest.raises(ValueError, match="defined twice"):
        verify(replace(graph, nodes=(*graph.nodes, graph.nodes[-1])))
    with pytest.raises(ValueError, match="no buffer"):
        verify(replace(graph, states={"nothing": graph.states["seen"]}))
    with pytest.raises(ValueError, match="fewer"):
        verify(replace(graph, outputs=(Ref(graph.nodes[0].name, 5),)))


def test_references_are_found_in_nested_arguments() -> None:
    nested = [Ref("a"), (1, [Ref("b", 1)]), {"k": Ref("c")}]
    assert [str(r) for r in references(nested)] == ["%a", "%b.1", "%c"]


class Precise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        frequencies = 100 ** -(torch.arange(4, dtype=torch.float64) / 4)
        return torch.outer(x.double(), frequencies).cos().to(self.dtype)

    dtype = torch.float32


def test_double_precision_on_the_way_becomes_single() -> None:
    graph = build_graph(export_module(Precise(), (torch.randn(3),)), "Precise")
    types = {r.dtype for n in graph.nodes for r in n.results if r is not None}
    assert types == {torch.float32}
    assert torch.float64 not in {v for n in graph.nodes for v in n.kwargs.values()}


def test_double_precision_as_a_result_is_refused() -> None:
    module = Precise()
    module.dtype = torch.float64
    with pytest.raises(CompileError, match=r"torch\.float64.*return torch\.float32"):
        build_graph(export_module(module, (torch.randn(3),)), "Precise")


class Placed(nn.Module):
    """Features take the places of a token, as images do; one check counts them."""

    def forward(self, ids: Tensor, features: Tensor) -> Tensor:
        mask = ids == 7
        torch._check((mask.sum() == features.shape[0]).item())
        places = mask[..., None].expand(*ids.shape, features.shape[1])
        return torch.zeros(places.shape).masked_scatter(places, features)


def test_numbers_that_only_checks_read_are_none() -> None:
    ids = torch.tensor([[1, 7, 7, 2]])
    program = export_module(Placed(), (ids, torch.randn(2, 3)))
    targets = {str(node.target) for node in build_graph(program).nodes}
    assert "aten.masked_scatter.default" in targets
    assert "aten.item.default" not in targets


def test_placeholders_keep_their_number_in_fresh_values(tmp_path: Path) -> None:
    ids = torch.tensor([[1, 7, 7, 2, 3, 4, 5, 6]])
    made = compile_module(Placed(), tmp_path / "out", (ids, torch.randn(2, 3)))
    assert made.agreement is not None
    assert made.agreement.cases == ("example", "fresh values")
