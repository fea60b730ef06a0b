"""The ways into the compiler, and what a user reads where one is closed."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torch2mlx
from torch2mlx.errors import CompileError, OptionError, SourceError, UnsupportedError

MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.hidden = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(width, 3)

    def forward(self, x, scale=None):
        x = self.dropout(torch.relu(self.hidden(self.embed(x))))
        return self.head(x if scale is None else x * scale)

def build():
    torch.manual_seed(0)
    return Net()

class Sorter(nn.Module):
    def forward(self, x):
        return x[torch.rand(x.shape) > 0.5]

instance = build()
number = 3

def broken():
    raise RuntimeError("no such weights")

def wrong():
    return 3
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a user's module and an example, and nothing else."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(MODULE)
    (tmp_path / "halves.py").write_text("import nothing_of_that_name\n")
    torch.save(torch.arange(10).reshape(2, 5), tmp_path / "x.pt")
    yield tmp_path
    for name in ("nets", "halves"):
        sys.modules.pop(name, None)


def _net() -> nn.Module:
    scope: dict[str, Any] = {"__name__": "nets"}
    exec(compile(MODULE, "nets.py", "exec"), scope)
    net: nn.Module = scope["build"]().eval()
    return net


# Runs where only MLX can be imported: torch and this package are out of reach.
ALONE = """
import sys, numpy as np
class Closed:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torch2mlx", "transformers", "mlx_lm"):
            raise ImportError(name)
sys.meta_path.insert(0, Closed())
import mlx.core as mx
from model import load
given = dict(np.load(sys.argv[1]))
out = load(".")(**{name: mx.array(value) for name, value in given.items()})
np.save(sys.argv[2], np.array(out))
"""


def _run_alone(folder: Path, scratch: Path, **given: torch.Tensor) -> torch.Tensor:
    import numpy as np

    np.savez(scratch / "in.npz", **{name: value.numpy() for name, value in given.items()})
    arguments = [str(scratch / "in.npz"), str(scratch / "out.npy")]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *arguments],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return torch.from_numpy(np.load(scratch / "out.npy"))


def test_module_runs_with_mlx_alone(tmp_path: Path) -> None:
    net, x, scale = _net(), torch.arange(10).reshape(2, 5), torch.rand(64)
    made = torch2mlx.convert(
        net, tmp_path / "out", example_inputs=(x,), example_kwargs={"scale": scale}
    )
    assert made.to_dict()["model_class"] == "Net"
    fresh = torch.tensor([[4, 0, 10, 10, 3], [1, 2, 2, 9, 5]])
    found = _run_alone(made.destination, tmp_path, x=fresh, scale=scale + 1)
    torch.testing.assert_close(found, net(fresh, scale + 1).detach(), rtol=1e-5, atol=1e-6)


SEVERAL = """
import runpy, sys
import mlx.core as mx
first, second = (runpy.run_path(f"{n}/model.py")["load"](n) for n in sys.argv[1:])
print(first(mx.ones((1, 2))).shape, second(mx.ones((1, 3))).shape, "model" in sys.modules)
"""


def test_several_folders_in_one_process(tmp_path: Path) -> None:
    for name, width in (("first", 2), ("second", 3)):
        x = torch.rand(1, width)
        torch2mlx.convert(nn.Linear(width, 4 * width), tmp_path / name, example_inputs=(x,))
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL, "first", "second"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "(1, 8) (1, 12) False\n", done.stderr


def test_dynamic_shapes_of_a_module(tmp_path: Path) -> None:
    net, batch = _net(), torch.export.Dim("batch")
    x = torch.arange(10).reshape(2, 5)
    made = torch2mlx.convert(
        net, tmp_path / "out", example_inputs=(x,), dynamic_shapes={"x": {0: batch}}
    )
    fresh = torch.arange(35).reshape(7, 5) % 11
    found = _run_alone(made.destination, tmp_path, x=fresh)
    torch.testing.assert_close(found, net(fresh).detach(), rtol=1e-5, atol=1e-6)


def test_exported_program_and_its_file(tmp_path: Path) -> None:
    net, x = _net(), torch.arange(10).reshape(2, 5)
    dims = {"x": {0: torch.export.Dim("batch"), 1: None}}
    program = torch.export.export(net, (x,), dynamic_shapes=dims)
    torch.export.save(program, tmp_path / "net.pt2")
    fresh = torch.arange(30).reshape(6, 5) % 11
    for source in (program, tmp_path / "net.pt2", str(tmp_path / "net.pt2")):
        out = tmp_path / "out" / str(len(list((tmp_path).glob("out/*"))))
        trust = source is not program  # a file can bring code
        made = torch2mlx.convert(source, out, trust_remote_code=trust)
        assert "class Net(nn.Module):" in (out / "model.py").read_text()
        assert any("=" in case for case in made.cases)  # other sizes were compared
    found = _run_alone(out, tmp_path, x=fresh)
    torch.testing.assert_close(found, net(fresh).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["nets:build", "nets:instance"])
def test_factory_is_put_into_inference_mode(place: Path, name: str) -> None:
    made = torch2mlx.convert(name, "out", example="x.pt", dynamic=["x:0=batch"])
    fresh = torch.arange(15).reshape(3, 5) % 11
    found = _run_alone(made.destination, place, x=fresh)
    torch.testing.assert_close(found, _net()(fresh).detach(), rtol=1e-5, atol=1e-6)


def test_command_line(place: Path, run_cli: Any) -> None:
    torch.save({"x": torch.arange(10).reshape(2, 5), "scale": torch.rand(64)}, "kwargs.pt")
    code, out, _ = _cli(run_cli, "nets:build", "out", "--example", "kwargs.pt",
                        "--dynamic", "x:0=batch", "--dynamic", "x:1=length", "--json")  # fmt: skip
    assert code == 0
    told = json.loads(out)
    assert told["destination"] == str(place / "out")
    assert told["error"] <= told["limit"]
    assert any("batch=" in case and "length=" in case for case in told["cases"])
    code, out, _ = _cli(run_cli, "nets:build", "table", "--example", "x.pt", "-q")
    assert (code, "moves the outputs by" in out) == (0, True)
    for command, words in (
        (("generate", "table", "-p", "hi"), "a compiled module, not a language model"),
        (("convert", "table", "again"), "name what it was made from"),
        (("verify", "nets:build", "table"), "`verify DST --certificate`"),
    ):
        done = run_cli(*command)
        assert (done.returncode, words in " ".join(done.stderr.split())) == (3, True)


def _cli(run_cli: Any, *arguments: str) -> tuple[int, str, str]:
    done = run_cli("convert", *arguments)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def run_cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The command line in this process."""
    from torch2mlx.cli import main

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["torch2mlx", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, int(ended.value.code or 0), out, err)

    return run


def test_quantized_folder(tmp_path: Path) -> None:
    net, x = _net(), torch.arange(10).reshape(2, 5)
    made = torch2mlx.convert(
        net, tmp_path / "out", example_inputs=(x,),
        quantize=True, q_bits=8, keep=["head"], bits=["embed=4:32"],
    )  # fmt: skip
    assert made.quantization == {
        "group_size": 64, "bits": 8, "mode": "affine",
        "embed": {"group_size": 32, "bits": 4, "mode": "affine"},
    }  # fmt: skip
    import mlx.core as mx

    weights = mx.load(str(tmp_path / "out" / "model.safetensors"))
    assert weights["embed.weight"].shape == (11, 64 * 4 // 32)
    assert weights["hidden.weight"].shape == (64, 64 * 8 // 32)
    assert "head.scales" not in weights
    # What torch computes with the same rounded numbers.
    rounded = {
        f"{n}.weight": mx.dequantize(*(weights[f"{n}.{p}"] for p in ("weight", "scales", "biases")),
                                     group_size=g, bits=b)
        for n, g, b in (("embed", 32, 4), ("hidden", 64, 8))
    }  # fmt: skip
    net.load_state_dict({n: torch.tensor(w.tolist()) for n, w in rounded.items()}, strict=False)
    found = _run_alone(tmp_path / "out", tmp_path, x=x)
    torch.testing.assert_close(found, net(x).detach(), rtol=1e-4, atol=1e-5)
    assert 0 < (made.drift or 0) < 0.2


def test_what_is_not_quantized_has_the_bits_that_are_told(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 4)).eval()
    example = (torch.ones(2, 8),)
    made = torch2mlx.convert(net, tmp_path / "out", example_inputs=example, quantize=True)
    assert "unquantized, 32 bits per weight, because width 8" in " ".join(made.notes)


def test_nothing_to_quantize(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"-q: no module would be quantized \(width 8 .*"):
        torch2mlx.convert(
            nn.Sequential(nn.Linear(8, 64)),
            tmp_path / "out",
            example_inputs=(torch.rand(1, 8),),
            quantize=True,
        )
    with pytest.raises(OptionError, match="no layer can be quantized"):
        torch2mlx.convert(
            nn.Conv1d(1, 2, 3), tmp_path / "out", example_inputs=(torch.rand(1, 1, 8),),
            quantize=True,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "options", "code", "words"),
    [
        ("netz:build", ["--example", "x.pt"], 3, "netz cannot be imported"),
        ("halves:build", ["--example", "x.pt"], 3, "nothing_of_that_name"),
        ("nets:built", ["--example", "x.pt"], 3, "it defines"),
        ("nets:number", ["--example", "x.pt"], 3, "a int, not a function"),
        ("nets:broken", ["--example", "x.pt"], 3, "no such weights"),
        ("nets:wrong", ["--example", "x.pt"], 3, "returns a int"),
        ("nets:build", [], 2, "--example inputs.pt"),
        ("nets:build", ["--example", "none.pt"], 2, "none.pt"),
        ("nets:build", ["--example", "nets.py"], 2, "torch.save"),
        ("nets:build", ["--example", "whole.pt"], 2, "torch.save"),
        ("nets:build", ["--example", "number.pt"], 2, "a int"),
        ("nets:build", ["--example", "x.pt", "--dynamic", "x=batch"], 2, "argument:axis=name"),
        ("nets:build", ["--example", "x.pt", "--dynamic", "y:0=batch"], 2, "there is x"),
        ("nets:build", ["--example", "x.pt", "--dynamic", "x:2=batch"], 2, "has 2 axes"),
        ("nets:build", ["--example", "x.pt", "-d"], 2, "no quantized layers"),
        ("nets:build", ["--example", "x.pt", "--weights", "none.pt"], 3, "none.pt"),
        ("nets:build", ["--example", "x.pt", "-q", "--keep", "heads"], 2, "heads"),
        ("nets:Sorter", ["--example", "x.pt"], 4, "nets.py"),
        ("none.pt2", [], 3, "no such file"),
        ("net.pt2", [], 4, "add --trust-remote-code"),
        ("text.pt2", ["--trust-remote-code"], 3, "cannot read it as an exported program"),
        ("newer.pt2", ["--trust-remote-code"], 3, "cannot read it as an exported program"),
        ("net.pt2", ["--example", "x.pt", "--trust-remote-code"], 2, "brings its own example"),
        ("scripted.pt", [], 4, "load_state_dict"),
        (".", ["--example", "x.pt"], 2, "package.module:factory"),
    ],
)
def test_one_message_and_nothing_left(
    place: Path, run_cli: Any, source: str, options: list[str], code: int, words: str
) -> None:
    net, x = _net(), torch.arange(10).reshape(2, 5)
    torch.save(nn.Linear(2, 2), "whole.pt")
    torch.save(3, "number.pt")
    Path("text.pt2").write_text("no archive")
    if source == "scripted.pt":
        torch.jit.trace(net, (x,)).save("scripted.pt")
    if source in ("net.pt2", "newer.pt2"):
        torch.export.save(torch.export.export(net, (x,)), "net.pt2")
        _with_schema_of_the_future(Path("net.pt2"), Path("newer.pt2"))
    before = sorted(p for p in place.iterdir() if p.name != "__pycache__")
    status, out, err = _cli(run_cli, source, "out", *options, "--quiet")
    assert (status, out) == (code, "")
    assert words in " ".join(err.split())
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert sorted(p for p in place.iterdir() if p.name != "__pycache__") == before


def test_the_code_of_an_exported_program_needs_consent(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "canary"), "w")

    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.rand(1, 2),)), tmp_path / "a.pt2")
    with (
        zipfile.ZipFile(tmp_path / "a.pt2") as old,
        zipfile.ZipFile(tmp_path / "evil.pt2", "w") as new,
    ):
        for name in old.namelist():
            data = old.read(name)
            if "sample_inputs" in name:
                torch.save(Payload(), buffer := io.BytesIO())
                data = buffer.getvalue()
            new.writestr(name, data)
    with pytest.raises(UnsupportedError, match="--trust-remote-code"):
        torch2mlx.convert(tmp_path / "evil.pt2", tmp_path / "out")
    assert not (tmp_path / "canary").exists()


def _with_schema_of_the_future(source: Path, destination: Path) -> None:
    """The archive, its program stamped with a version that no torch reads yet."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(destination, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("models/model.json"):
                program = json.loads(data)
                program["schema_version"]["major"] += 100
                data = json.dumps(program).encode()
            new.writestr(name, data)


def test_sources_that_are_none(tmp_path: Path) -> None:
    x = torch.rand(1, 2)
    with pytest.raises(OptionError, match="int is no source"):
        torch2mlx.convert(3, tmp_path / "out", example_inputs=(x,))  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"give a tuple: \(x,\)"):
        torch2mlx.convert(nn.Linear(2, 2), tmp_path / "out", example_inputs=x)  # type: ignore[arg-type]
    with pytest.raises(SourceError):
        torch2mlx.convert("a/b/c:d", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_every_reason_names_the_users_line(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eig(x)[0] + torch.special.zeta(x, x)

    with pytest.raises(CompileError) as failed:
        torch2mlx.convert(Two(), tmp_path / "out", example_inputs=(torch.rand(3, 3),))
    assert len(failed.value.reasons) == 2
    assert all(Path(__file__).name in reason for reason in failed.value.reasons)
    assert list(tmp_path.iterdir()) == []


class _Remembers(nn.Module):
    """Keeps its last result in a plain attribute, or in a buffer."""

    def __init__(self, buffer: bool) -> None:
        super().__init__()
        if buffer:
            self.register_buffer("last", torch.zeros(2))
        else:
            self.last = torch.zeros(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = torch.tanh(x + self.last)
        return self.last * 2


def test_state_in_plain_attributes_is_refused(tmp_path: Path) -> None:
    x = torch.rand(2)
    with pytest.raises(CompileError, match=r"- last: assigned by forward; register"):
        torch2mlx.convert(_Remembers(False).eval(), tmp_path / "out", example_inputs=(x,))
    assert list(tmp_path.iterdir()) == []
    torch2mlx.convert(nn.LSTM(2, 3).eval(), tmp_path / "lstm", example_inputs=(torch.rand(4, 2),))
    made = torch2mlx.convert(_Remembers(True).eval(), tmp_path / "out", example_inputs=(x,))
    assert made.to_dict()["error"] < 1e-6


class _Counts(nn.Module):
    """Looks up how much a mask lets through: only zeros and ones are valid."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)

    def forward(self, mask: torch.Tensor) -> torch.Tensor:
        return self.table(mask.sum(1).long())


def test_fresh_masks_are_masks(tmp_path: Path) -> None:
    mask = (torch.arange(16).reshape(2, 8) % 3 > 0).float()
    made = torch2mlx.convert(_Counts(), tmp_path / "out", example_inputs=(mask,))
    assert made.to_dict()["cases"] == ("example", "fresh values")
