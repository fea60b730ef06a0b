"""Where the weights of a compiled module come from, and how they are written."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import torch2mlx
from torch2mlx.compiler.meta import parameters_on_meta
from torch2mlx.compiler.package import compile_source
from torch2mlx.compiler.parity import import_model, mlx_array
from torch2mlx.conversion.shard_file import ShardFile
from torch2mlx.errors import DestinationError, NumericError, OptionError, PlanError, SourceError
from torch2mlx.progress import Silent

MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.conv = nn.Conv1d(width, width, 3, padding=1)
        self.head = nn.Linear(width, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("mask", torch.full((5, 5), -torch.inf).triu(1))
        self.register_buffer("scale", torch.arange(1, width + 1) / width, persistent=False)

    def forward(self, x):
        h = self.embed(x).transpose(1, 2)
        h = torch.relu(self.conv(h)).transpose(1, 2) * self.scale
        scores = torch.softmax(h @ h.transpose(1, 2) + self.mask, -1)
        return self.head(scores @ h)

def build():
    torch.manual_seed(3)
    return Net()

def on_meta():
    with torch.device("meta"):
        return Net()
"""
X = torch.arange(10).reshape(2, 5)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weighed.py").write_text(MODULE)
    torch.save(X, tmp_path / "x.pt")
    yield tmp_path
    sys.modules.pop("weighed", None)


def _net(seed: int = 0) -> nn.Module:
    scope: dict[str, Any] = {"__name__": "weighed"}
    exec(compile(MODULE, "weighed.py", "exec"), scope)
    torch.manual_seed(seed)
    net: nn.Module = scope["Net"]().eval()
    return net


def _run(folder: Path, x: Tensor) -> Tensor:
    found = import_model(folder).load(str(folder))(mlx_array(x))
    import mlx.core as mx

    return torch.tensor(found.astype(mx.float32).tolist())


def _stored(net: nn.Module) -> dict[str, Tensor]:
    """A state dict as a checkpoint has it: tied tensors once."""
    state = {k: v.contiguous() for k, v in net.state_dict().items()}
    del state["head.weight"]
    return state


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_factory_and_checkpoint(place: Path, kind: str) -> None:
    net = _net()
    if kind == "safetensors":
        save_file(_stored(net), "weights.safetensors")
    else:
        torch.save({"state_dict": net.state_dict()}, "weights.pt")
    file = f"weights.{'safetensors' if kind == 'safetensors' else 'pt'}"
    made = torch2mlx.convert("weighed:build", "out", example="x.pt", weights=file)
    torch.testing.assert_close(_run(made.destination, X + 1), net(X + 1).detach())
    manifest = json.loads((place / "out" / "torch2mlx.json").read_text())
    assert manifest["source"]["files"].keys() == {file}
    assert manifest["options"] == {"weights": file}
    assert manifest["verification"]["audit"]["passed"]
    assert (place / "out" / "model.safetensors.index.json").exists()


@pytest.mark.parametrize("prefix", ["model.", "_orig_mod.module.", "system.net."])
def test_names_of_trainers(place: Path, prefix: str) -> None:
    net = _net()
    state = {f"{prefix}{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, "last.ckpt")
    made = torch2mlx.convert("weighed:build", "out", example="x.pt", weights="last.ckpt")
    torch.testing.assert_close(_run(Path(made.destination), X + 1), net(X + 1).detach())
    assert "prefix" in " ".join(made.notes)


def test_one_tensor_of_the_module_has_one_value(place: Path) -> None:
    state = _net().state_dict()
    torch.save({**state, "head.weight": 2 * state["embed.weight"]}, "weights.pt")
    with pytest.raises(PlanError, match=r"head\.weight has other values than embed\.weight"):
        torch2mlx.convert("weighed:build", "out", example="x.pt", weights="weights.pt")
    assert not (place / "out").exists()


def test_a_folder_brings_tokenizer_and_pooling_along(place: Path) -> None:
    source = place / "encoder"
    (source / "1_Pooling").mkdir(parents=True)
    save_file(_stored(_net()), source / "model.safetensors")
    save_file(_stored(_net()), place / "alone.safetensors")
    files = ("modules.json", "1_Pooling/config.json", "preprocessor_config.json")
    for name in files:
        (source / name).write_text(json.dumps({"of": name}))
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text("{}")  # of something else: beside a single file
    made = torch2mlx.convert("weighed:build", "out", example="x.pt", weights="encoder")
    for name in files:
        assert (Path(made.destination) / name).read_bytes() == (source / name).read_bytes()
    torch2mlx.convert("weighed:build", "out2", example="x.pt", weights="alone.safetensors")
    assert not {"1_Pooling", "modules.json"} & {p.name for p in (place / "out2").iterdir()}


def test_names_and_shapes_are_compared_first(place: Path) -> None:
    state = _stored(_net())
    state["other"] = torch.zeros(2)
    state["conv.bias"] = torch.zeros(3)
    del state["mask"]
    save_file(state, "weights.safetensors")
    with pytest.raises(PlanError) as failed:
        torch2mlx.convert("weighed:build", "out", example="x.pt", weights="weights.safetensors")
    for words in ["missing: mask [5, 5]", "unexpected: other [2]", "conv.bias: expected [64]"]:
        assert words in str(failed.value)
    save_file(_stored(_net()), "weights.safetensors")
    with pytest.raises(SourceError, match=r"scale .*no data"):
        torch2mlx.convert("weighed:on_meta", "out", example="x.pt", weights="weights.safetensors")
    assert not (place / "out").exists()


def test_shards_quantized_on_the_way(tmp_path: Path) -> None:
    import mlx.core as mx

    net = _net()
    made = torch2mlx.convert(
        net, tmp_path / "out", example_inputs=(X,), max_shard_size="50KB", quantize=True, q_bits=8
    )
    files = sorted(tmp_path.glob("out/model-*.safetensors"))
    assert len(files) > 1
    assert all(f.stat().st_size <= 50_000 for f in files)
    weights: dict[str, Any] = {}
    for file in files:
        weights |= mx.load(str(file))
    expected = mx.quantize(mlx_array(net.embed.weight), 64, 8)  # type: ignore[arg-type]
    parts = (weights[f"embed.{part}"] for part in ("weight", "scales", "biases"))
    assert all(mx.array_equal(a, b) for a, b in zip(parts, expected, strict=True))
    assert (_run(tmp_path / "out", X) - net(X).detach()).norm() < 0.05 * net(X).norm()
    assert made.to_dict()["drift"] < 0.05


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_dtype(tmp_path: Path, dtype: str) -> None:
    import mlx.core as mx

    net = _net()
    made = torch2mlx.convert(net, tmp_path / "out", example_inputs=(X,), dtype=dtype)
    weights = mx.load(str(tmp_path / "out" / "model.safetensors"))
    assert {str(w.dtype) for w in weights.values()} == {f"mlx.core.{dtype}"}
    assert net.embed.weight.dtype == torch.float32  # type: ignore[union-attr]
    assert made.to_dict()["limit"] == {"bfloat16": 5e-2, "float16": 1e-2}[dtype]
    assert 1e-6 < made.to_dict()["error"] < made.to_dict()["limit"]
    with torch.no_grad():
        net.conv.weight[0, 0, 0] = 1e6  # type: ignore[index,union-attr]
    if dtype == "float16":
        with pytest.raises(NumericError, match=r"conv\.weight.*overflows float16"):
            torch2mlx.convert(net, tmp_path / "over", example_inputs=(X,), dtype=dtype)


def test_without_verification(tmp_path: Path) -> None:
    made = torch2mlx.convert(_net(), tmp_path / "out", example_inputs=(X,), verify=False)
    told = made.to_dict()
    assert (told["error"], told["cases"]) == (None, ())
    manifest = json.loads((tmp_path / "out" / "torch2mlx.json").read_text())
    assert manifest["verification"] == {"skipped": True}
    assert "--no-verify" in (tmp_path / "out" / "README.md").read_text()


def test_nan_in_a_parameter_is_refused(tmp_path: Path) -> None:
    net = _net()
    with torch.no_grad():
        net.conv.bias[2] = torch.nan  # type: ignore[index,union-attr]
    with pytest.raises(NumericError, match=r"conv\.bias"):
        torch2mlx.convert(net, tmp_path / "out", example_inputs=(X,))
    assert list(tmp_path.iterdir()) == []


def test_options_that_do_not_apply(tmp_path: Path) -> None:
    net, out = _net(), tmp_path / "out"
    with pytest.raises(OptionError, match=r"-d: a module.*--max-context"):
        torch2mlx.convert(net, out, example_inputs=(X,), dequantize=True, max_context=9)
    with pytest.raises(OptionError, match="--dtype: an exported program has the dtypes"):
        torch2mlx.convert(torch.export.export(net, (X,)), out, dtype="float16")
    with pytest.raises(OptionError, match="--weights belongs to a module"):
        torch2mlx.convert(tmp_path, out, weights="w.safetensors")


def test_a_model_too_large_to_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch2mlx.compiler.proof.available_bytes", lambda: 1000)
    with pytest.raises(OptionError, match=r"about 0\.0 GB.*--no-verify"):
        torch2mlx.convert(_net(), tmp_path / "out", example_inputs=(X,))
    assert list(tmp_path.iterdir()) == []
    torch2mlx.convert(_net(), tmp_path / "out", example_inputs=(X,), verify=False)


def test_weights_are_freed_before_mlx_reads_its_own(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = []

    def loading(folder: Path) -> Any:
        modules = [m for m in gc.get_objects() if type(m).__name__ == "Net" and id(m) not in before]
        devices.extend({p.device.type for p in m.parameters()} for m in modules)
        return import_model(folder)

    save_file(_stored(_net()), "weights.safetensors")
    monkeypatch.setattr("torch2mlx.compiler.proof.import_model", loading)
    others = [
        m for m in gc.get_objects() if type(m).__name__ == "Net"
    ]  # of other tests, kept alive
    before = {id(m) for m in others}
    torch2mlx.convert("weighed:build", "out", example="x.pt", weights="weights.safetensors")
    assert devices == [{"meta"}]


def _stopped(net: nn.Module, out: Path, **options: Any) -> None:
    """Convert, and be interrupted when the first of several weight files is finished."""
    finish = ShardFile.finish
    made = []

    def interrupted(file: ShardFile) -> str:
        if made:
            raise KeyboardInterrupt
        made.append(file.path.name)
        return finish(file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardFile, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt, match="1 finished file is kept"):
            torch2mlx.convert(net, out, example_inputs=(X,), max_shard_size="50KB", **options)


def test_stopped_run_goes_on(tmp_path: Path) -> None:
    class Notes(Silent):
        said = ""

        def note(self, text: str) -> None:
            self.said += text

    options: dict[str, Any] = {"quantize": True, "q_bits": 8}
    given: dict[str, Any] = {"example_inputs": (X,), "max_shard_size": "50KB", **options}
    torch2mlx.convert(_net(), tmp_path / "whole", **given)
    _stopped(_net(), tmp_path / "out", **options)
    heard = Notes()
    torch2mlx.convert(_net(), tmp_path / "out", progress=heard, **given)
    assert "going on: 1 of" in heard.said
    assert [p.name for p in tmp_path.iterdir() if p.name[0] == "."] == []
    for file in (p for p in (tmp_path / "whole").iterdir() if p.is_file()):  # evidence has times
        if file.name != "torch2mlx.json":
            assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()

    _stopped(_net(), tmp_path / "other", **options)
    with pytest.raises(DestinationError, match=r"values in memory\) changed.*--restart"):
        torch2mlx.convert(_net(1), tmp_path / "other", **given)
    made = torch2mlx.convert(_net(1), tmp_path / "other", restart=True, **given)
    assert made.to_dict()["drift"] < 0.05


def test_parameters_on_meta_keep_buffers_and_ties() -> None:
    with parameters_on_meta():
        net = _net()
    assert net.head.weight is net.embed.weight
    assert {p.device.type for p in net.parameters()} == {"meta"}
    assert {b.device.type for b in net.buffers()} == {"cpu"}
    made = compile_source(net, (X,))
    assert {p.device.type for p in net.parameters()} == {"meta"}
    assert "self.embed.as_linear" in made.generated.source


LARGE = """
import resource, sys, torch
from torch import nn
import torch2mlx, torch2mlx.compiler.package, mlx.nn, torch2mlx.sources.checkpoint
import torch._dynamo, torch.export
class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4096, 4096) for _ in range(12))
    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x
small = torch.export.export(nn.Linear(2, 2), (torch.rand(1, 2),)).run_decompositions({})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
torch2mlx.convert("__main__:Wide", "out", example_inputs=(torch.rand(1, 4096),),
                  weights="weights.safetensors", verify=False, memory_limit="100MB")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_weights(tmp_path: Path) -> None:
    state = {}
    for i in range(12):
        state[f"layers.{i}.weight"] = torch.zeros(4096, 4096)
        state[f"layers.{i}.bias"] = torch.zeros(4096)
    save_file(state, tmp_path / "weights.safetensors")
    del state
    done = subprocess.run(
        [sys.executable, "-c", LARGE], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 250e6  # of 805 MB of weights
