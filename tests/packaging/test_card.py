from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from torch2mlx.packaging.card import copy_documents, write_card
from torch2mlx.packaging.manifest import Manifest, SourceRecord
from torch2mlx.sources.base import Checkpoint
from torch2mlx.verification.report import Budget, Comparison, LayerDifference, ParityReport

from .test_manifest import example

QUANTIZATION = {
    "group_size": 64,
    "bits": 4,
    "mode": "affine",
    "lm_head": {"group_size": 64, "bits": 6, "mode": "affine"},
    "model.a": {"group_size": 32, "bits": 8, "mode": "mxfp8"},
    "model.b": {"group_size": 32, "bits": 8, "mode": "mxfp8"},
}
README = """---
license: other
license_name: acme
license_link: https://example.org/license
language: [en, de]
pipeline_tag: text2text-generation
tags: [safetensors, chat, transformers]
base_model: someone/else
---
# The original
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    output = tmp_path / "output"
    output.mkdir()
    config = {"model_type": "llama", "quantization": QUANTIZATION}
    (output / "config.json").write_text(json.dumps(config))
    return output


def _checkpoint(source: Path, location: str) -> Checkpoint:
    return Checkpoint(location, source, "safetensors", {}, source=None, state={})  # type: ignore[arg-type]


def _card(folder: Path, source: Path, manifest: Manifest) -> ModelCard:
    write_card(folder, manifest, _checkpoint(source, manifest.source.location))
    return ModelCard.load(folder / "README.md")


def test_front_matter(folder: Path, source: Path) -> None:
    (source / "README.md").write_text(README)
    data = _card(folder, source, example()).data.to_dict()
    assert data == {
        "base_model": "owner/name",
        "base_model_relation": "quantized",
        "language": ["en", "de"],
        "library_name": "mlx",
        "license": "other",
        "license_link": "https://example.org/license",
        "license_name": "acme",
        "pipeline_tag": "text2text-generation",
        "tags": ["mlx", "torch2mlx", "4-bit", "chat"],
    }


def test_a_local_source_is_no_base_model_and_its_path_stays_private(
    folder: Path, source: Path
) -> None:
    manifest = replace(example(), source=SourceRecord(str(source), "safetensors"))
    card = _card(folder, source, manifest)
    assert "base_model" not in card.data.to_dict()
    assert card.data.to_dict()["pipeline_tag"] == "text-generation"
    assert str(source.parent) not in card.content
    assert "version of source, converted by torch2mlx" in card.content


@pytest.mark.parametrize(
    "readme", ["", "---\nlicense: [", "---\n- 1\n---\n", "---\nlicense: {a: 1}\ntags: 5\n---\n"]
)
def test_a_damaged_card_of_the_source_does_not_matter(
    folder: Path, source: Path, readme: str
) -> None:
    (source / "README.md").write_text(readme)
    assert "license" not in _card(folder, source, example()).data.to_dict()
    assert (folder / "README.source.md").read_text() == readme


def test_quantization_and_measured_size(folder: Path, source: Path) -> None:
    text = _card(folder, source, example()).text
    assert "| Bits per weight, measured on the files | 4.000 |" in text
    assert "| Quantization | 4 bits, groups of 64, affine |" in text
    assert "| 1 module instead | 6 bits, groups of 64, affine |" in text
    assert "| 2 modules instead | 8 bits, groups of 32, mxfp8 |" in text


def test_parity_figures(folder: Path, source: Path) -> None:
    logits = LayerDifference("logits", 3.25e-6, 1e-5)
    twin = Comparison("twin", "llama", 64, (), logits, 1.0, 1e-4, cached=logits)
    budget = Budget("quantization", {"mean_kl": 0.4831, "perplexity": float("nan")})
    limited = Budget("conversion", {"relative_l2": 2e-6}, {"relative_l2": 1e-4})
    report = ParityReport(
        (twin,), (budget, limited), audit={"passed": True}, skipped={"blocks": "too | large"}
    )
    text = _card(folder, source, replace(example(), verification=report.to_dict())).text
    assert "| twin | logits, relative L2 difference | 3.25e-06 | 0.0001 |" in text
    assert "| twin | logits through the cache | 3.25e-06 | 0.0001 |" in text
    assert "| twin | same most likely token | 1 |  |" in text
    assert "| quantization error | mean kl | 0.4831 |  |" in text
    assert "| quantization error | perplexity | not finite |  |" in text
    assert "| conversion error | relative l2 | 2e-06 | 0.0001 |" in text
    assert "| audit | every tensor against its source | passed |  |" in text
    assert "Not run: blocks (too \\| large)." in text
    assert "Every check passed." in text
    assert "not compared" not in text


def test_a_conversion_without_proof_says_so(folder: Path, source: Path) -> None:
    text = _card(folder, source, example()).text
    assert "**not compared**" in text
    assert "compared with PyTorch (see below)" not in text


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        ({"available": True, "templates": ["default"]}, "apply_chat_template"),
        ({"available": True, "templates": []}, "mlx_lm.generate"),
        ({"available": False}, "has no tokenizer that mlx-lm loads"),
        (None, "has no tokenizer that mlx-lm loads"),
    ],
)
def test_how_to_use_it(
    folder: Path, source: Path, tokenizer: dict[str, Any] | None, expected: str
) -> None:
    text = _card(folder, source, replace(example(), tokenizer=tokenizer)).text
    assert expected in text
    assert ("mlx_lm.generate" in text) == bool(tokenizer and tokenizer["available"])


def test_texts_of_the_checkpoint_do_not_act(folder: Path, source: Path) -> None:
    evil = "<script>x</script> | [a](javascript:b)\n# title {{ 7 + 7 }}"
    manifest = replace(
        example(),
        source=SourceRecord(f"/models/{evil}", "safetensors"),
        plan={"notes": [evil], "dtype": evil},
    )
    text = _card(folder, source, manifest).text
    assert "<script>" not in text
    assert "\\[a\\](javascript" in text
    assert "\n# title" not in text
    assert "{{ 7 + 7 }}" in text


def test_documents_are_kept(source: Path, tmp_path: Path) -> None:
    for name in ("README.md", "LICENSE", "LICENSE.txt", "NOTICE", "USE_POLICY.md", "license.py"):
        (source / name).write_text(name)
    (source / "LICENSE-big").write_bytes(b"x" * 5_000_000)
    assert copy_documents(source, tmp_path) == (
        "LICENSE",
        "LICENSE.txt",
        "NOTICE",
        "README.source.md",
        "USE_POLICY.md",
    )
    assert (tmp_path / "README.source.md").read_text() == "README.md"


def test_neighbours_of_a_single_file_are_not_taken(folder: Path, source: Path) -> None:
    (source / "README.md").write_text(README)
    gguf = source / "model.gguf"
    gguf.write_bytes(b"x")
    write_card(folder, example(), _checkpoint(source, str(gguf)))
    assert not (folder / "README.source.md").exists()
