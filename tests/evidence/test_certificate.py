"""The certificate of a converted checkpoint: it holds where nothing changed, and only there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import torch2mlx
from torch2mlx.errors import SourceError
from torch2mlx.evidence.certificate import CERTIFICATE, _digest, read_certificate
from torch2mlx.evidence.reference import REFERENCE, read_arrays
from torch2mlx.packaging.files import MANIFEST


@pytest.fixture(scope="session")
def converted(checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certified") / "out"
    torch2mlx.convert(checkpoint("llama"), folder, quantize=True)
    return folder


@pytest.fixture
def folder(converted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(converted, tmp_path / "elsewhere"))


def _without_torch(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line in a process where torch is not installed."""
    code = """
import importlib.machinery
found = importlib.machinery.PathFinder.find_spec
def find(name, path=None, target=None):
    return None if name.partition(".")[0] == "torch" else found(name, path, target)
importlib.machinery.PathFinder.find_spec = find
from torch2mlx.cli import run
run()
"""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_it_binds_sources_outputs_inputs_and_results(
    converted: Path, checkpoint: Callable[..., Path]
) -> None:
    found = read_certificate(converted)
    weights = checkpoint("llama") / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert found.source["model.safetensors"].sha256 == digest
    stored = {p.relative_to(converted).as_posix() for p in converted.rglob("*") if p.is_file()}
    assert stored - set(found.files) == {MANIFEST, CERTIFICATE, "README.md"}
    assert all(record.sha256 for record in found.files.values())
    assert found.results.keys() == found.tolerances.keys() == {
        "twin", "all layers", "written folder",
    }  # fmt: skip
    (run,) = found.runs
    assert run.relative is not None
    assert run.relative <= run.tolerance == 1e-4
    assert {"torch", "mlx", "torch2mlx"} <= found.versions.keys()
    assert (converted / REFERENCE).stat().st_size < 1 << 20


def test_the_reference_is_what_torch_computes(
    converted: Path, checkpoint: Callable[..., Path]
) -> None:
    """Stored logits against transformers with weights that MLX dequantizes."""
    import mlx.core as mx
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint("llama"), dtype=torch.float32)
    written = mx.load(str(converted / "model.safetensors"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            path = name.removesuffix(".weight")
            value = written[name]
            if f"{path}.scales" in written:
                scales, biases = written[f"{path}.scales"], written[f"{path}.biases"]
                wide = (scales.astype(mx.float32), biases.astype(mx.float32))
                value = mx.dequantize(value, *wide, group_size=64, bits=4)
            parameter.copy_(torch.from_numpy(np.array(value.astype(mx.float32))))
        arrays = {k: np.array(v) for k, v in read_arrays(converted).items()}
        ids = torch.from_numpy(arrays["tokens"].astype(np.int64))[None]
        logits = model(ids).logits[0].numpy()
    expected = logits[:, arrays["columns"]]
    gap = np.linalg.norm(arrays["logits"] - expected) / np.linalg.norm(expected)
    assert gap < 1e-5
    assert (arrays["top"] == logits.argmax(-1)).all()


def test_it_holds_elsewhere_without_torch(folder: Path) -> None:
    (folder / "README.md").write_text("# edited, as people do")
    (folder / ".DS_Store").write_bytes(b"1")
    done = _without_torch("verify", folder, "--certificate", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["passed"]
    (run,) = found["runs"]
    assert run["relative"] <= 1e-5
    assert found["versions"].keys() <= {"torch"}  # its files are there, hidden


def _flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


TAMPERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights": (lambda f: _flip(f / "model.safetensors", -100), "model.safetensors: changed"),
    "config": (lambda f: _replace(f / "config.json", "50000.0", "10000.0"), "config.json: changed"),
    "manifest": (lambda f: _replace(f / MANIFEST, '"passed": true', '"passed":  true'), MANIFEST),
    "evidence": (lambda f: _flip(f / "torch2mlx/evidence.json", 50), "evidence.json: changed"),
    "reference": (lambda f: _flip(f / REFERENCE, -1), "reference.arrays: changed"),
    "missing": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json: missing"),
    "more weights": (
        lambda f: shutil.copy(f / "model.safetensors", f / "model-extra.safetensors"),
        "model-extra.safetensors: not part of",
    ),
    "code": (lambda f: (f / "model.py").write_text("x = 1"), "model.py: not part of"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_tampering_is_found(folder: Path, run_cli: Callable[..., object], case: str) -> None:
    tamper, words = TAMPERED[case]
    tamper(folder)
    done = run_cli("verify", folder, "--certificate", "--json")
    assert done.code == 8
    found = json.loads(done.out)
    assert not found["passed"]
    assert not found["runs"]  # nothing of a changed folder runs
    assert words in "\n".join(found["problems"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"tolerance": 0.0001', '"tolerance": 0.5'),
        ('"relative": ', '"relative": 1'),
        ('"mlx": "', '"mlx": "9'),
        ('"digest": "', '"digest": "0'),
    ],
)
def test_an_edited_certificate_is_found(
    folder: Path, run_cli: Callable[..., object], old: str, new: str
) -> None:
    _replace(folder / CERTIFICATE, old, new)
    done = run_cli("verify", folder, "--certificate")
    assert done.code == 3
    assert "edited: its digest is not that of its content" in done.message


def _resealed(folder: Path, edit: Callable[[dict[str, object]], object]) -> None:
    """Someone who knows the form edits the certificate and gives it a new digest."""
    path = folder / CERTIFICATE
    raw = json.loads(path.read_bytes())
    edit(raw)
    raw["digest"] = _digest(raw)
    path.write_text(json.dumps(raw))


def test_other_outputs_are_found_where_all_hashes_agree(
    folder: Path, run_cli: Callable[..., object]
) -> None:
    """Wrong weights with a certificate made to fit: the reference outputs tell."""
    from torch2mlx.conversion.records import record_file

    weights = folder / "model.safetensors"
    _flip(weights, -2000)
    _flip(weights, -2001)
    record = record_file(weights)

    def edit(raw):
        raw["files"]["model.safetensors"] = {"size": record.size, "sha256": record.sha256}

    before = read_certificate(folder).digest
    _resealed(folder, edit)
    done = run_cli("verify", folder, "--certificate", "--json")
    found = json.loads(done.out)
    assert (done.code, found["problems"]) == (8, [])
    assert found["runs"][0]["relative"] is None or found["runs"][0]["relative"] > 1e-4
    assert found["digest"] != before


def test_hostile_certificates_are_refused(folder: Path) -> None:
    intact = (folder / CERTIFICATE).read_text()
    for edit, words in (
        (lambda r: r.update(files={"../x": {"size": 1}}), "does not stay inside"),
        (lambda r: r.update(files=[1]), "'files' is a list, not an object"),
        (lambda r: r.update(runs=[{"name": 3}]), "'runs\\[0\\].name' is a whole number"),
        (lambda r: r.update(form=2), "newer torch2mlx"),
        (lambda r: r["runs"][0]["arguments"].update(tokens={"array": "x"}), "is unknown"),
        (lambda r: r["runs"][0]["outputs"][0].update(array="x"), "no array 'x'"),
    ):
        (folder / CERTIFICATE).write_text(intact)
        _resealed(folder, edit)
        with pytest.raises(SourceError, match=words):
            torch2mlx.verify_certificate(folder)
    (folder / CERTIFICATE).unlink()
    with pytest.raises(SourceError, match="--no-verify"):
        torch2mlx.verify_certificate(folder)


def test_unproven_folders_have_none(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    torch2mlx.convert(checkpoint("llama"), tmp_path / "out", verify=False)
    assert not (tmp_path / "out" / CERTIFICATE).exists()
    assert (tmp_path / "out/torch2mlx/evidence.json").exists()
