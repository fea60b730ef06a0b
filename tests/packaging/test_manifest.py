from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from torch2mlx import __version__
from torch2mlx.architectures.port import load_port
from torch2mlx.conversion.records import FileRecord, record_file
from torch2mlx.errors import SourceError
from torch2mlx.packaging.files import changed_files, output_records, source_record
from torch2mlx.packaging.index import write_index
from torch2mlx.packaging.manifest import (
    Manifest,
    SourceRecord,
    build_manifest,
    library_versions,
    read_manifest,
)
from torch2mlx.planning.expressions import Source
from torch2mlx.planning.plan import build_plan
from torch2mlx.quantization.recipe import QuantOptions
from torch2mlx.quantization.scheme import Scheme
from torch2mlx.sources.base import Checkpoint
from torch2mlx.sources.safetensors import SafetensorsSource

from .conftest import CONFIG, save_weights


def example() -> Manifest:
    return Manifest(
        source=SourceRecord("owner/name", "safetensors", {"a/b.safetensors": FileRecord(10)}),
        options={"quantize": True, "keep": ["lm_head"], "q_bits": None},
        plan={"dropped": {"x.inv_freq": "a buffer"}, "notes": ["n"], "schemes": {}},
        weights={"total_size": 10, "total_parameters": 20, "bits_per_weight": 4.0},
        outputs={"model.safetensors": FileRecord(3, "0" * 64)},
        verification={"skipped": True},
        tokenizer={"passed": True},
        measured={"convert_wall_s": 1.5, "peak_rss_bytes": 10**9},
    )


def _edited(folder: Path, edit: Any) -> None:
    example().write(folder)
    path = folder / "torch2mlx.json"
    raw = json.loads(path.read_text())
    edit(raw)
    path.write_text(json.dumps(raw))


def test_read_what_was_written(tmp_path: Path) -> None:
    manifest = example()
    manifest.write(tmp_path)
    assert read_manifest(tmp_path) == manifest
    assert read_manifest(tmp_path).to_dict() == manifest.to_dict()


def test_non_finite_figures_become_null(tmp_path: Path) -> None:
    manifest = replace(example(), verification={"a": [math.nan, {"b": math.inf}], "c": 1.5})
    manifest.write(tmp_path)
    assert read_manifest(tmp_path).verification == {"a": [None, {"b": None}], "c": 1.5}


def test_versions_name_what_touches_the_numbers() -> None:
    versions = library_versions()
    assert versions["torch2mlx"] == __version__
    assert versions["mlx"] == mx.__version__
    assert {"torch", "mlx-lm", "transformers", "safetensors"} <= set(versions)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: r.pop("source"), "entry 'source' is missing"),
        (lambda r: r["source"].pop("kind"), "entry 'source.kind' is missing"),
        (lambda r: r.update(plan=[]), "entry 'plan' is a list, not an object"),
        (lambda r: r.update(schema_version="1"), "'schema_version' is a text, not a whole number"),
        (lambda r: r.update(schema_version=True), "'schema_version' is true or false"),
        (lambda r: r.update(schema_version=0), "schema_version 0"),
        (lambda r: r.update(schema_version=99), "newer torch2mlx.*upgrade"),
        (lambda r: r.update(tokenizer=3), "'tokenizer' is a whole number, not an object or null"),
        (lambda r: r["measured"].update(x="1"), "'measured.x' is not a whole number or a number"),
        (lambda r: r["weights"].update(x=None), "'weights.x' is not"),
        (lambda r: r["versions"].update(x=1), "'versions.x' is not a text"),
        (lambda r: r["outputs"].update(a={"size": -1}), "file 'a' of 'outputs' has the size -1"),
        (lambda r: r["outputs"].update(a={"size": True}), "has the size True"),
        (lambda r: r["outputs"].update(a=[1]), "file 'a' of 'outputs' has no size"),
        (lambda r: r["outputs"].update(a={"size": 1, "sha256": "xyz"}), "not 64 hex digits"),
        (lambda r: r["source"]["files"].update({"/etc/passwd": {"size": 1}}), "stay inside"),
    ],
)
def test_damage_is_named(tmp_path: Path, edit: Any, message: str) -> None:
    _edited(tmp_path, edit)
    with pytest.raises(SourceError, match=message):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/../../x", "a//b", "", ".", "a\\b", "C:x", "x\x00", "a/", "./a"]
)
def test_names_never_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    _edited(tmp_path, lambda r: r["outputs"].update({name: {"size": 1, "sha256": None}}))
    with pytest.raises(SourceError, match="does not stay inside"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"a": NaN}', b"\xff\xfe\x00", b"[" * 200_000, b'{"a":1}x'],
)
def test_what_is_no_manifest(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "torch2mlx.json").write_bytes(content)
    with pytest.raises(SourceError, match=r"torch2mlx\.json: damaged"):
        read_manifest(tmp_path)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "torch2mlx.json").open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(SourceError, match="at most"):
        read_manifest(tmp_path)


def test_a_folder_without_one(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not found; only folders"):
        read_manifest(tmp_path)
    (tmp_path / "torch2mlx.json").mkdir()
    with pytest.raises(SourceError, match="cannot be read"):
        read_manifest(tmp_path)


def test_changed_files_are_found(tmp_path: Path) -> None:
    for name in ("same", "longer", "edited", "gone"):
        (tmp_path / name).write_bytes(b"abc")
    records = output_records(tmp_path)
    assert records["same"].size == 3
    assert changed_files(tmp_path, records) == ()
    (tmp_path / "longer").write_bytes(b"abcd")
    (tmp_path / "edited").write_bytes(b"abd")
    (tmp_path / "gone").unlink()
    assert set(changed_files(tmp_path, records)) == {"longer", "edited", "gone"}


def test_texts_for_people_are_not_recorded(tmp_path: Path) -> None:
    for name in ("README.md", "LICENSE", "torch2mlx.json", "config.json"):
        (tmp_path / name).write_text("x")
    assert list(output_records(tmp_path)) == ["config.json"]


def test_the_hash_of_a_file_in_the_hubs_cache_is_known(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    digest = record_file(_written(tmp_path / "plain", b"weights")).sha256
    assert digest is not None
    blob = _written(tmp_path / "blobs" / digest, b"weights")
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    assert source_record(link) == FileRecord(7, digest)
    assert source_record(tmp_path / "plain") == FileRecord(7, None)


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@dataclass(frozen=True)
class Built:
    checkpoint: Checkpoint
    manifest: Manifest


@pytest.fixture
def built(source: Path, tmp_path: Path, model: Any) -> Built:
    """The manifest of a quantization plan; the written weights are the source's own."""
    save_weights(model, source)
    tensors = SafetensorsSource([source / "model.safetensors"])
    checkpoint = Checkpoint(
        location=str(source),
        folder=source,
        kind="safetensors",
        config=CONFIG,
        source=tensors,
        state={n: Source(n, i.dtype, i.shape) for n, i in tensors.tensors.items()},
        tokenizer_files={"tokenizer.json": source / "tokenizer.json"},
    )
    port = load_port(CONFIG)
    plan = build_plan(checkpoint, port, quantize=QuantOptions(Scheme(4, 64)))
    output = tmp_path / "output"
    output.mkdir()
    save_weights(model, output)
    manifest = build_manifest(
        checkpoint=checkpoint,
        plan=plan,
        port_module=port.module,
        options={"quantize": True},
        summary=write_index(output, {}),
        folder=output,
        parity=None,
        tokenizer=None,
        measured={"convert_wall_s": 0.1},
        notes=("a note",),
    )
    return Built(checkpoint, manifest)


def test_built_from_a_plan(built: Built, tmp_path: Path) -> None:
    manifest = built.manifest
    assert set(manifest.source.files) == {"config.json", "model.safetensors", "tokenizer.json"}
    assert set(manifest.outputs) == {"model.safetensors", "model.safetensors.index.json"}
    assert manifest.verification == {"skipped": True}
    assert manifest.plan["port"] == "mlx_lm.models.llama"
    assert manifest.plan["schemes"]["model.layers.0.mlp.up_proj"]["bits"] == 4
    assert manifest.plan["notes"] == ["a note"]
    assert manifest.weights["bits_per_weight"] == 32.0
    manifest.write(tmp_path / "output")
    assert read_manifest(tmp_path / "output") == manifest
