"""Extents that vary: their names, their bounds, and what other sizes bring to light."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import torch2mlx
from torch2mlx.compiler.dimensions import parse_dynamic
from torch2mlx.compiler.lowering import registry
from torch2mlx.compiler.symbolic import SymbolicInt, solved
from torch2mlx.errors import OptionError, ParityError


class Halves(nn.Module):
    """Halves its length, and says how long the result is through a reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv1d(3, 4, 2, stride=2)
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(x).transpose(1, 2)
        self.seen = self.seen + y.mean((0, 1))
        return y.reshape(x.shape[0] * (x.shape[2] // 2), 4) + self.seen


@pytest.mark.parametrize(
    ("dims", "line"),
    [
        ({0: Dim("batch", max=9), 2: 2 * Dim("length")}, "length = x.shape[2] // 2"),
        ({0: 2 * Dim("pairs"), 2: 2 * Dim("length") + 2}, "length = (x.shape[2] - 2) // 2"),
        ({0: Dim.AUTO, 2: Dim("steps", min=4, max=64)}, "steps = x.shape[2]"),
    ],
)
def test_derived_and_bounded_extents(tmp_path: Path, dims: Any, line: str) -> None:
    torch.manual_seed(0)
    made = torch2mlx.convert(
        Halves().eval(),
        tmp_path / "out",
        example_inputs=(torch.rand(4, 3, 8),),
        dynamic_shapes={"x": dims},
    )
    assert line in (tmp_path / "out" / "model.py").read_text()
    assert len(made.cases) == 4  # type: ignore[union-attr]


def test_exported_program_with_a_derived_extent(tmp_path: Path) -> None:
    dims = {"x": {0: 2 * Dim("pairs")}}
    x = torch.rand(4, 3)
    program = torch.export.export(nn.Linear(3, 2).eval(), (x,), dynamic_shapes={"input": dims["x"]})
    made = torch2mlx.convert(program, tmp_path / "out")
    assert made.cases[2:] == ("n=3",)  # type: ignore[union-attr]


def test_a_size_that_a_lowering_fixes_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.new_ones((x.shape[0], 2)).cumsum(0) * 2

    registry.registered()

    def fixed(b: Any, x: Any, dim: int, *, dtype: Any = None) -> Any:
        import mlx.core as mx

        return b.constant(mx.cumsum(mx.ones(tuple(map(int, x.shape))), axis=dim))

    monkeypatch.setitem(registry._REGISTRY, torch.ops.aten.cumsum.default, fixed)
    with pytest.raises(ParityError, match=r"\(batch=4\): output 0 differs"):
        torch2mlx.convert(
            Net().eval(),
            tmp_path / "out",
            example_inputs=(torch.rand(3, 2),),
            dynamic_shapes={"x": {0: Dim("batch")}},
        )
    assert list(tmp_path.iterdir()) == []


class Blocks(nn.Module):
    """Takes multiples of eight only, which torch.export does not see."""

    def forward(self, x: Tensor) -> Tensor:
        torch._check(x.shape[0] > 1)
        return x * 2 if torch.compiler.is_exporting() else x.reshape(-1, 8).reshape(x.shape) * 2


def test_other_sizes_are_those_that_torch_takes(tmp_path: Path) -> None:
    x = torch.rand(16)
    made = torch2mlx.convert(
        Blocks(), tmp_path / "out", example_inputs=(x,), dynamic_shapes={"x": {0: Dim("n")}}
    )
    assert made.cases[2:] == ("n=24", "n=8")  # type: ignore[union-attr]
    with pytest.raises(ParityError, match="PyTorch itself fails on other sizes of n"):
        torch2mlx.convert(
            Blocks(),
            tmp_path / "fixed",
            example_inputs=(x,),
            dynamic_shapes={"x": {0: Dim("n", min=12, max=20)}},
        )


def test_names_in_extents() -> None:
    assert solved("length") == ("length", "{}")
    assert solved("2*length + 1") == ("length", "({} - 1) // 2")
    assert solved("length - 3") == ("length", "{} + 3")
    assert solved("length // 2") is None
    assert solved("a*b") is None
    assert solved(SymbolicInt(4, "max(2, a)").expression) is None


def _forward(x: Tensor, states: Any, scale: float = 1.0) -> None: ...


def test_texts_of_the_command_line() -> None:
    x = torch.rand(4, 9)
    args = (x, [x, {"key": x}])
    texts = ["x:0=batch:2..64", "x:1=2*length+1", "states.1.key:0=batch", "states.0:1=length-1"]
    found = parse_dynamic(texts, _forward, args, {})
    assert found["x"][0].__name__ == "batch"
    assert (found["x"][0].min, found["x"][0].max) == (2, 64)
    assert found["states"][1]["key"][0] is found["x"][0]
    assert found["x"][1].root is found["states"][0][1].root
    assert found["x"][1].fn(3) == 7
    for text, words in [
        ("x=batch", "x:1=2[*]length"),
        ("y:0=batch", "there is x, states.0, states.1.key"),
        ("x:2=batch", "has 2 axes"),
        ("x:0=batch:9..3", "holds no two values"),
        ("x:1=2*3", "write argument"),
    ]:
        with pytest.raises(OptionError, match=words):
            parse_dynamic([text], _forward, args, {})
    with pytest.raises(OptionError, match="other bounds before"):
        parse_dynamic(["x:0=b:2..5", "x:1=b:2..6"], _forward, args, {})
