"""TorchScript archives become modules of ordinary operators, with consent."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch2mlx
from torch2mlx.compiler.parity import import_model, mlx_array
from torch2mlx.errors import NumericError, OptionError, SourceError, UnsupportedError

X = torch.rand(3, 4)

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.norm(torch.relu(self.linear(x)))
        return hidden


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = Hidden()
        self.head = nn.Linear(8, 2)
        self.register_buffer("steps", torch.arange(8.0))

    def forward(self, points: Tensor) -> Tensor:
        result: Tensor = self.head(self.hidden(points) + self.steps)
        return result


def _traced(net: nn.Module) -> Any:
    return torch.jit.trace(net, (X,))  # type: ignore[no-untyped-call]


def _scripted(net: nn.Module) -> Any:
    return torch.jit.script(net)


@pytest.mark.parametrize("make", [_traced, _scripted])
def test_archive(tmp_path: Path, make: Callable[[nn.Module], Any]) -> None:
    net = Net().eval()
    make(net).save(tmp_path / "net.jit")
    with pytest.raises(UnsupportedError, match=r"contains code.*--trust-remote-code.*load_state"):
        torch2mlx.convert(tmp_path / "net.jit", tmp_path / "out", example_inputs=(X,))
    torch2mlx.convert(
        tmp_path / "net.jit", tmp_path / "out",
        example_inputs=(X,), dynamic=["points:0=batch"], trust_remote_code=True,
    )  # fmt: skip
    source = (tmp_path / "out" / "model.py").read_text()
    assert "class Net(nn.Module)" in source
    assert "self.hidden.linear = nn.Linear(4, 8)" in source
    fresh = torch.rand(7, 4)
    found = import_model(tmp_path / "out").load(str(tmp_path / "out"))(mlx_array(fresh))
    torch.testing.assert_close(torch.tensor(found.tolist()), net(fresh).detach())


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 0):
            return x
        return x - 1 if x.shape[0] > 1 else x


class Adding(nn.Module):
    """Keeps a tensor in a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.last = torch.zeros(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.last + x
        return self.last


def test_state_of_an_archive(tmp_path: Path) -> None:
    script = _scripted(Adding().eval())
    torch2mlx.convert(script, tmp_path / "out", example_inputs=(X,))
    assert not script.last.any()
    model = import_model(tmp_path / "out").load(str(tmp_path / "out"))
    model(mlx_array(X))
    torch.testing.assert_close(torch.tensor(model(mlx_array(X)).tolist()), 2 * X)


def test_what_cannot_be_followed(tmp_path: Path) -> None:
    def refused(module: nn.Module, **options: Any) -> None:
        given = {"example_inputs": (X,), **options}
        torch2mlx.convert(_scripted(module.eval()), tmp_path / "out", **given)

    with pytest.raises(UnsupportedError, match=r"Branching: torch cannot turn.*load_state_dict"):
        refused(Branching())
    damaged = Net()
    with torch.no_grad():
        damaged.head.bias[0] = torch.nan
    with pytest.raises(NumericError, match=r"head\.bias"):
        refused(damaged)
    with pytest.raises(OptionError, match="positional"):
        refused(Net(), example_inputs=None, example_kwargs={"points": X})
    assert list(tmp_path.iterdir()) == []


def test_damaged_archive(tmp_path: Path) -> None:
    whole = tmp_path / "net.jit"
    _scripted(Net()).save(whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(tmp_path / "half.jit", "w") as new:
        for name in old.namelist():
            if "/data/" not in name:
                new.writestr(name, old.read(name))
    with pytest.raises(SourceError, match="cannot read it as a TorchScript archive"):
        torch2mlx.convert(
            tmp_path / "half.jit", tmp_path / "out", example_inputs=(X,), trust_remote_code=True
        )
