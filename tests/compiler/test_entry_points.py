"""Several methods of one module, and the structures that they take and give."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch2mlx
from torch2mlx.compiler.entry_points import EntryPoint
from torch2mlx.compiler.lowering import registry
from torch2mlx.compiler.package import compile_entries
from torch2mlx.compiler.parity import import_model, mlx_array
from torch2mlx.errors import OptionError, ParityError

Latent = namedtuple("Latent", ["mean", "extra"])


@dataclass
class Pair:
    first: Tensor
    second: list[Tensor]


torch.export.register_dataclass(Pair)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)
        self.out = nn.Linear(4 * 16, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.conv(x)).flatten(1))


class Autoencoder(nn.Module):
    """Methods that share a layer and a buffer that one of them changes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.decoder = nn.Linear(3, 5)
        self.norm = nn.LayerNorm(3)
        self.register_buffer("count", torch.zeros(()))

    def encode(self, x: Tensor) -> Any:
        mean, log = self.encoder(x).chunk(2, -1)
        self.count += 1
        return Latent(self.norm(mean), {"log": [log, None]})

    def decode(self, pair: Pair, scale: Any = None) -> Pair:
        z = self.norm(pair.first) * scale["s"] + self.count + torch.tensor([1.0, 2.0])[1]
        return Pair(self.decoder(z), [pair.second[0] + 1])

    def kernel(self) -> Tensor:
        return self.encoder.conv.weight * torch.tensor([3.0, 4.0])[1]


def _autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder().eval()


def test_methods_share_weights_and_state(tmp_path: Path) -> None:
    import mlx.core as mx

    net, batch = _autoencoder(), torch.export.Dim("batch")
    x = torch.rand(4, 3, 8, 8)
    pair, scale = Pair(torch.rand(5, 3), [torch.rand(2)]), {"s": torch.rand(3)}
    made = torch2mlx.convert(
        net,
        tmp_path / "out",
        entry_points={"encode": (x,), "decode": {"pair": pair, "scale": scale}},
        dynamic_shapes={"encode": {"x": {0: batch}}},
    )
    assert made.cases == (  # type: ignore[union-attr]
        "encode: example", "encode: fresh values", "encode: batch=5", "encode: batch=3",
        "decode: example", "decode: fresh values",
    )  # fmt: skip
    weights = mx.load(str(tmp_path / "out" / "model.safetensors"))
    assert set(weights) == {*net.state_dict(), "lifted_tensor_0"}
    assert tuple(weights["encoder.conv.weight"].shape) == (4, 3, 3, 3)
    module = import_model(tmp_path / "out")
    model = module.load(str(tmp_path / "out"))
    for _ in range(2):
        latent, expected = model.encode(mlx_array(x)), net.encode(x)
    assert type(latent) is module.Latent
    assert latent._fields == Latent._fields
    _close(latent.mean, expected.mean)
    assert list(latent.extra) == ["log"]
    _close(latent.extra["log"][0], expected.extra["log"][0])
    assert latent.extra["log"][1] is None
    assert model.count.item() == 2
    found = model.decode(
        {"first": mlx_array(pair.first), "second": [mlx_array(pair.second[0])]},
        {"s": mlx_array(scale["s"])},
    )
    wanted = net.decode(pair, scale)
    _close(found["first"], wanted.first)
    _close(found["second"][0], wanted.second[0])


def _close(found: Any, expected: Tensor) -> None:
    torch.testing.assert_close(torch.tensor(found.tolist()), expected.detach())


def test_a_weight_that_methods_use_differently_keeps_its_layout(tmp_path: Path) -> None:
    x = torch.rand(1, 3, 8, 8)
    made = torch2mlx.convert(
        _autoencoder(),
        tmp_path / "out",
        entry_points={"encode": (x,), "kernel": ()},
    )
    assert "self.conv = Conv2d()" in (tmp_path / "out" / "model.py").read_text()
    assert made.to_dict()["error"] < 1e-5


def test_constants_of_one_name_stay_apart() -> None:
    net = _autoencoder()
    pair = Pair(torch.rand(5, 3), [torch.rand(2)])
    points = [
        EntryPoint("kernel"),
        EntryPoint("decode", (pair, {"s": torch.rand(3)})),
    ]
    made = compile_entries(net, points)
    assert set(made.constants) == {"lifted_tensor_0", "lifted_tensor_0_decode"}
    assert set(made.generated.weights) > set(made.constants)


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch2mlx.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.py").write_text(
        "from torch import nn\n"
        "class Two(nn.Linear):\n"
        "    def __init__(self): super().__init__(3, 4)\n"
        "    def back(self, y, by=1): return y @ self.weight * by\n"
    )
    torch.save((torch.rand(2, 3),), "there.pt")
    torch.save({"y": torch.rand(5, 4), "by": 2}, "back.pt")
    command = ["torch2mlx", "convert", "two:Two", "out", "--entry", "forward=there.pt"]
    command += ["--entry", "back=back.pt", "--dynamic", "back/y:0=rows", "--quiet"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    source = (tmp_path / "out" / "model.py").read_text()
    assert "def __call__(self, input):" in source
    assert "[rows, 4]" in source


def test_what_is_no_entry_point(tmp_path: Path) -> None:
    net, x = nn.Linear(2, 2), torch.rand(1, 2)
    for given, words in [
        ({"entry_points": {"encode": x, "weight": x}}, "no method encode, weight"),
        ({"entry_points": {"forward": 3}}, "must be a tensor"),
        ({"entry_points": {}}, "name a method"),
        ({"entry_points": ["forward"]}, "method=file"),
        ({"entry_points": {"forward": x}, "example_inputs": (x,)}, "name forward as one"),
        ({"entry_points": {"forward": x}, "dynamic_shapes": {"x": {}}}, "is none of them"),
        ({"entry_points": {"forward": x}, "dynamic": ["back/x:0=n"]}, "no entry point 'back'"),
    ]:
        with pytest.raises(OptionError, match=words):
            torch2mlx.convert(net, tmp_path / "out", **given)  # type: ignore[arg-type]


class Cell(nn.Module):
    """Keeps its last output, as a recurrent network does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("last", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.last = torch.sin(self.linear(x) + self.last)
        return self.last


class Layered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList(Cell() for _ in range(3))
        self.head = nn.Linear(3, 2)

    def step(self, x: Tensor, last: bool = True) -> Tensor:
        for cell in self.cells if last else self.cells[:1]:
            x = cell(x)
        return self.head(x)


def test_the_first_module_that_differs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault that only the second method meets, in the second of three cells, with state."""
    import mlx.core as mx

    torch.manual_seed(0)
    registry.registered()
    right = registry._REGISTRY[torch.ops.aten.sin.default]
    calls = 0

    def wrong(b: Any, x: Any) -> Any:
        nonlocal calls
        calls += 1
        return right(b, b.call(mx.negative, x) if calls == 3 else x)

    monkeypatch.setitem(registry._REGISTRY, torch.ops.aten.sin.default, wrong)

    class Net(Layered):
        def one(self, x: Tensor) -> Tensor:
            return self.step(x, last=False)

    x = torch.rand(3)
    with pytest.raises(ParityError, match=r"\(step: example\).*first module.* cells\.1 \(Cell"):
        torch2mlx.convert(Net().eval(), tmp_path / "out", entry_points={"one": (x,), "step": (x,)})
    assert list(tmp_path.iterdir()) == []
