"""The certificate of a compiled module: nested arguments, several methods, state, quantization."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import torch2mlx
from torch2mlx.errors import SourceError
from torch2mlx.evidence.certificate import CERTIFICATE, read_certificate
from torch2mlx.evidence.record import read_evidence
from torch2mlx.evidence.reference import read_arrays

from .test_certificate import _flip, _replace, _without_torch


class Counting(nn.Module):
    """Two methods; one takes a nested argument, the other changes a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(64, 64)
        self.head = nn.Linear(64, 3)
        self.register_buffer("seen", torch.zeros(64))

    def forward(self, batch: dict[str, torch.Tensor], scale: float = 1.0) -> torch.Tensor:
        return self.head(torch.relu(self.hidden(batch["x"] * scale)) + batch["y"])

    def observe(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.seen.add_(x.sum(0))
        return self.hidden(x) + self.seen, x.argmax(-1)


@pytest.fixture(scope="session")
def module() -> Counting:
    torch.manual_seed(0)
    return Counting().eval()


def _entry_points() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(4, 64, generator=generator) for _ in "xy")
    return {"forward": ({"x": x, "y": y},), "observe": (x,)}


@pytest.fixture(scope="session")
def converted(module: Counting, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certified") / "out"
    torch2mlx.convert(module, folder, entry_points=_entry_points())
    return folder


@pytest.fixture
def folder(converted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(converted, tmp_path / "elsewhere"))


def test_stored_outputs_are_those_of_torch(converted: Path, module: Counting) -> None:
    runs = {run.name: run for run in read_certificate(converted).runs}
    assert list(runs) == [
        "forward: example", "forward: fresh values", "observe: example", "observe: fresh values",
    ]  # fmt: skip
    arrays = read_arrays(converted)
    run = runs["forward: example"]
    assert run.method == "__call__"
    given = _entry_points()["forward"]
    with torch.no_grad():
        expected = module(*given).numpy().ravel()
    assert np.allclose(np.array(arrays[run.outputs[0].array]), expected, atol=1e-6)
    _, labels = runs["observe: example"].outputs
    stored = np.array(arrays[labels.array])
    assert stored.tolist() == given[0]["x"].argmax(-1).tolist()


def test_evidence_has_every_output(converted: Path) -> None:
    evidence = read_evidence(converted)
    assert evidence is not None
    names = {(o.case, o.name, o.shape, o.dtype) for o in evidence.outputs}
    assert ("observe: example", "output 1", (4,), "int64") in names
    assert ("observe: fresh values", "buffer seen", (64,), "float32") in names
    assert all(o.relative is not None and o.relative <= o.limit for o in evidence.outputs)
    assert {m.name for m in evidence.modules} == {"hidden", "head"}


def test_it_holds_elsewhere_without_torch(folder: Path) -> None:
    refused = _without_torch("verify", folder, "--certificate")
    assert refused.returncode == 3
    assert "--trust-remote-code" in refused.stderr
    done = _without_torch("verify", folder, "--certificate", "--trust-remote-code", "--json")
    assert done.returncode == 0, done.stderr
    runs = json.loads(done.stdout)["runs"]
    assert len(runs) == 4
    assert all(run["relative"] < 1e-6 for run in runs)


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (lambda f: _flip(f / "model.safetensors", -100), "model.safetensors: changed"),
        (lambda f: _replace(f / "model.py", "relu", "abs"), "model.py: changed"),
        (lambda f: _replace(f / "config.json", "Counting", "Other"), "config.json: changed"),
        (lambda f: (f / "helper.py").write_text("x = 1"), "helper.py: not part of"),
    ],
)
def test_tampering_is_found(
    folder: Path, run_cli: Callable[..., Any], tamper: Callable[[Path], object], words: str
) -> None:
    tamper(folder)
    done = run_cli("verify", folder, "--certificate", "--trust-remote-code")
    assert done.code == 8
    assert words in " ".join(done.out.split())


def test_stale_bytecode_is_not_run(folder: Path) -> None:
    """A compiled file that claims to be model.py's would run instead of it."""
    import importlib.util
    import py_compile

    source, bad = folder / "model.py", folder.parent / "bad.py"
    bad.write_text("raise RuntimeError('ran')\n" + " " * (source.stat().st_size - 27))
    cached = Path(importlib.util.cache_from_source(str(source)))
    py_compile.compile(str(bad), cfile=str(cached))
    data = bytearray(cached.read_bytes())
    data[8:12] = int(source.stat().st_mtime).to_bytes(4, "little")
    data[12:16] = source.stat().st_size.to_bytes(4, "little")
    cached.write_bytes(data)
    assert torch2mlx.verify_certificate(folder, trust_remote_code=True).passed


def test_quantized_outputs_are_compared_with_their_own_numbers(
    module: Counting, tmp_path: Path
) -> None:
    torch2mlx.convert(module, tmp_path / "out", entry_points=_entry_points(), quantize=True)
    certificate = read_certificate(tmp_path / "out")
    assert "from PyTorch" in certificate.reference
    check = torch2mlx.verify_certificate(tmp_path / "out", trust_remote_code=True)
    assert [run.name for run in check.runs] == ["forward: example", "observe: example"]
    assert check.passed
    assert max(run.relative for run in check.runs) <= 1e-3


def test_large_inputs_are_left_out_and_said_so(tmp_path: Path) -> None:
    big = torch.zeros(1200, 1024)
    torch2mlx.convert(nn.ReLU(), tmp_path / "out", example_inputs=(big,))
    certificate = read_certificate(tmp_path / "out")
    assert certificate.runs == ()
    assert "beyond 4 MiB are not kept: example" in certificate.limits
    assert torch2mlx.verify_certificate(tmp_path / "out").limits == certificate.limits
    assert (tmp_path / "out" / CERTIFICATE).stat().st_size < 10_000


def test_code_needs_consent(folder: Path) -> None:
    with pytest.raises(SourceError, match="has to run"):
        torch2mlx.verify_certificate(folder)
