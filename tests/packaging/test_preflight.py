"""Tokenizer files that would hang or fill the memory are refused; the others pass."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from torch2mlx.errors import SourceError
from torch2mlx.packaging import preflight
from torch2mlx.packaging.preflight import require_harmless
from torch2mlx.packaging.tokenizer import load_tokenizer

_SLOW_PATTERN = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {
        "type": "Split",
        "pattern": {"Regex": "(a+)+b"},
        "behavior": "Isolated",
        "invert": False,
    },
    "post_processor": None,
    "decoder": None,
    "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "CPU_SECONDS", 2)


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ ('x' * 20000000000)[:1] }}",
        "{% set ns = namespace(t='x' * 1000) %}{% for i in range(90) %}"
        "{% set ns.t = ns.t ~ ns.t %}{% endfor %}",
    ],
    ids=["loops", "product", "doubling"],
)
def test_a_template_cannot_take_the_machine(template: str, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(SourceError, match=r"chat_template\.jinja: tried out on short texts"):
        require_harmless(tmp_path)


def test_a_pattern_that_backtracks_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(_SLOW_PATTERN))
    with pytest.raises(SourceError, match=r"tokenizer\.json: tried out"):
        load_tokenizer(tmp_path)


def test_templates_inside_of_the_config_are_tried(tmp_path: Path) -> None:
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    config = {"eos_token": "</s>", "chat_template": [{"name": "rag", "template": loops}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match=r"tokenizer_config\.json: tried out"):
        require_harmless(tmp_path)


def test_what_is_merely_wrong_is_left_to_those_who_load_it(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "chat_template.jinja").write_text("{% if %}")
    (tmp_path / "tokenizer.model").write_bytes(b"\x00\xff")
    require_harmless(tmp_path)


def test_the_working_directory_lends_no_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "tokenizers.py").write_text(f"open({str(canary)!r}, 'w')")
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    require_harmless(tmp_path)
    assert not canary.exists()


def test_an_endless_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 31)
    with pytest.raises(SourceError, match="expected at most"):
        require_harmless(tmp_path)
