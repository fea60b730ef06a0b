"""Calibration through the command line: the written folder, compared with PyTorch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from torch2mlx.calibration import engine
from torch2mlx.calibration.conversion import calibration_folder

TOKENS = ("--calibration-tokens", "256", "--quiet")


def perplexing_text(folder: Path) -> Path:
    path = folder / "text.txt"
    path.write_text("the sun rises and the stars go out over the hills of the north " * 60)
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return perplexing_text(tmp_path)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", ("--q-bits", "3", "--q-group-size", "32")),
        ("qwen3_moe", ("--q-mode", "mxfp4")),
        ("llama_tied", ("--q-mode", "nvfp4")),
        ("llama_tied", ("--q-mode", "mxfp8")),
    ],
)
def test_a_calibrated_folder_passes_the_gate(
    checkpoint, run_cli, tmp_path: Path, text: Path, name: str, options: tuple[str, ...]
) -> None:
    run = run_cli(
        "convert", checkpoint(name), tmp_path / "out", "-q", *options, "--calibrate",
        "--calibration-text", text, *TOKENS,
    )  # fmt: skip
    assert run.code == 0, run.message
    manifest = json.loads((tmp_path / "out" / "torch2mlx.json").read_text())
    checks = manifest["verification"]["audit"]["counts"]
    assert checks["calibrated"] >= 20
    assert not calibration_folder(tmp_path / "out").exists()


def test_a_calibrated_folder_is_verified_by_its_hashes_and_rows(
    checkpoint, run_cli, tmp_path: Path, text: Path, read_weights
) -> None:
    source, out = checkpoint("llama"), tmp_path / "out"
    options = ("-q", "--calibrate", "--calibration-text", text, *TOKENS)
    assert run_cli("convert", source, out, *options, "--no-verify").code == 0
    assert run_cli("verify", source, out, "--quiet").code == 0

    tensors = load_file(out / "model.safetensors")
    name = "model.layers.0.mlp.down_proj"
    for part in ("weight", "scales", "biases"):
        tensors[f"{name}.{part}"] = tensors[f"{name}.{part}"].roll(1, 0)
    save_file(tensors, out / "model.safetensors", metadata={"format": "mlx"})
    run = run_cli("verify", source, out, "--quiet")
    assert run.code == 8
    assert "model.safetensors" in run.message

    manifest = json.loads((out / "torch2mlx.json").read_text())
    digest = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    manifest["outputs"]["model.safetensors"]["sha256"] = digest
    (out / "torch2mlx.json").write_text(json.dumps(manifest))
    run = run_cli("verify", source, out, "--quiet")
    assert run.code == 8
    assert f"{name}.weight" in run.message


def test_a_killed_run_goes_on_and_gives_the_same_bytes(
    checkpoint, run_cli, tmp_path: Path, text: Path, read_weights, monkeypatch
) -> None:
    command = ("-q", "--q-bits", "4", "--calibrate", "--calibration-text", text, *TOKENS)
    source = checkpoint("llama_tied")
    assert run_cli("convert", source, tmp_path / "whole", *command, "--no-verify").code == 0
    layers = []
    original = engine._Walk._layer

    def killed(self, index, *rest):
        if index == 2 and len(layers) == 2:
            raise KeyboardInterrupt
        layers.append(index)
        return original(self, index, *rest)

    monkeypatch.setattr(engine._Walk, "_layer", killed)
    assert run_cli("convert", source, tmp_path / "killed", *command, "--no-verify").code != 0
    assert not (tmp_path / "killed").exists()
    layers.append(-1)
    assert run_cli("convert", source, tmp_path / "killed", *command, "--no-verify").code == 0
    assert layers == [0, 1, -1, 2]
    whole, killed_run = read_weights(tmp_path / "whole"), read_weights(tmp_path / "killed")
    assert whole == killed_run


def test_calibration_text_without_calibration_is_refused(run_cli, checkpoint, tmp_path) -> None:
    run = run_cli("convert", checkpoint("llama"), tmp_path / "o", "-q", "--calibration-text", "x")
    assert run.code == 2
    assert "--calibrate" in run.message


def test_a_checkpoint_without_a_tokenizer_is_refused(run_cli, copied, tmp_path) -> None:
    source = copied("llama_short")
    for path in (*source.glob("tokenizer*"), source / "chat_template.jinja"):
        path.unlink()
    run = run_cli("convert", source, tmp_path / "o", "-q", "--calibrate", "--no-verify")
    assert run.code == 3
    assert f"{source}: has no tokenizer (tokenizer.json" in run.message


def test_a_short_text_is_refused(run_cli, checkpoint, tmp_path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("too short")
    run = run_cli(
        "convert", checkpoint("llama"), tmp_path / "o", "-q", "--calibrate",
        "--calibration-text", path, "--no-verify", "--quiet",
    )  # fmt: skip
    assert run.code == 2
    assert "less than 256 tokens" in run.message


def test_the_installed_texts_are_the_same_each_time() -> None:
    from torch2mlx.calibration.texts import calibration_ids, installed_texts

    class Bytes:
        def __call__(self, text: str):
            return type("Encoding", (), {"input_ids": list(text.encode())})

    texts = installed_texts()
    first, again = (calibration_ids(Bytes(), texts, 4096, 128) for _ in range(2))
    assert first.shape == (32, 128)
    np.testing.assert_array_equal(first, again)


def test_distillation_brings_predictions_nearer(
    checkpoint, run_cli, tmp_path: Path, text: Path
) -> None:
    """At two bits, on the text that it is tuned on."""
    divergence = {}
    for name, options in (("plain", ()), ("distilled", ("--distill",))):
        run = run_cli(
            "convert", checkpoint("llama_tied", "float32"), tmp_path / name, "-q", "--q-bits", "2",
            "--calibrate", "--calibration-text", text, "--calibration-tokens", "4096",
            "--max-context", "64", "--quiet", *options,
        )  # fmt: skip
        assert run.code == 0, run.message
        manifest = json.loads((tmp_path / name / "torch2mlx.json").read_text())
        budgets = {b["name"]: b["figures"] for b in manifest["verification"]["budgets"]}
        divergence[name] = budgets["quantization"]["mean_kl"]
    assert divergence["distilled"] < 0.95 * divergence["plain"]


def test_a_result_beyond_the_bound_is_not_published(checkpoint, run_cli, tmp_path: Path) -> None:
    run = run_cli(
        "convert", checkpoint("llama_tied"), tmp_path / "out", "-q", "--q-bits", "2",
        "--max-kl", "0.001", "--quiet",
    )  # fmt: skip
    assert run.code == 8
    assert "--calibrate" in run.message
    assert not (tmp_path / "out").exists()


def test_distillation_that_helps_no_other_text_is_not_kept(
    checkpoint, run_cli, tmp_path: Path, text: Path, monkeypatch
) -> None:
    """With steps that are far too large the calibrated values stay."""
    from torch2mlx.calibration import distillation

    monkeypatch.setattr(distillation.Distillation, "__init__", _wild)
    folders = []
    for name, options in (("plain", ()), ("distilled", ("--distill",))):
        run = run_cli(
            "convert", checkpoint("llama_tied", "float32"), tmp_path / name, "-q", "--calibrate",
            "--calibration-text", text, "--calibration-tokens", "256", "--max-context", "64",
            "--quiet", "--no-verify", *options,
        )  # fmt: skip
        assert run.code == 0, run.message
        folders.append(tmp_path / name)
    plain, distilled = (folder / "model.safetensors" for folder in folders)
    manifest = json.loads((folders[1] / "torch2mlx.json").read_text())
    assert any("0% of its change of scales is kept" in note for note in manifest["plan"]["notes"])
    assert plain.read_bytes() == distilled.read_bytes()


def _wild(self, rate: float = 0, batch: int = 0) -> None:
    object.__setattr__(self, "rate", 50.0)
    object.__setattr__(self, "batch", 2)


def test_tokens_drawn_from_the_model_are_the_same_each_time(
    checkpoint, run_cli, tmp_path: Path, read_weights, text: Path, monkeypatch
) -> None:
    """Half of the tokens; the first of each sequence is the end of the text before."""
    from torch2mlx.calibration import conversion

    seen = []
    original = conversion.calibrate

    def recorded(checkpoint, outputs, ids, *rest, **options):
        seen.append(ids)
        return original(checkpoint, outputs, ids, *rest, **options)

    monkeypatch.setattr(conversion, "calibrate", recorded)
    for name in ("one", "two"):
        run = run_cli(
            "convert", checkpoint("llama_tied"), tmp_path / name, "-q", "--q-bits", "3",
            "--calibrate", "--calibration-text", text, "--calibration-tokens", "512",
            "--calibration-samples", "256", "--max-context", "64", "--no-verify", "--quiet",
        )  # fmt: skip
        assert run.code == 0, run.message
    first, again = seen
    assert first.shape == (8, 64)
    np.testing.assert_array_equal(first, again)
    assert (first[:4, 0] == 0).all()
    assert len({tuple(row) for row in first[:4].tolist()}) == 4
    assert read_weights(tmp_path / "one") == read_weights(tmp_path / "two")


def test_the_model_answers_questions_in_its_chat_template(checkpoint) -> None:
    """Against the tokenizer's own rendering; the same in every run, and a share of the default."""
    from transformers import AutoTokenizer

    from torch2mlx.calibration.conversion import _answers
    from torch2mlx.calibration.sampling import answer_ids
    from torch2mlx.progress import Silent
    from torch2mlx.sources import open_checkpoint

    source = checkpoint("llama_tied")
    tokenizer = AutoTokenizer.from_pretrained(source)
    opened = open_checkpoint(source)
    first, again = (answer_ids(opened, tokenizer, 512, 128) for _ in range(2))
    assert first.shape == (4, 128)
    np.testing.assert_array_equal(first, again)
    shown = tokenizer.decode(first[0])
    assert shown.startswith("<|im_start|>user\nWhat causes the tides")
    assert "<|im_end|>\n<|im_start|>assistant\n" in tokenizer.decode(first.flatten())
    roomy = replace(opened, config={**opened.config, "max_position_embeddings": 1024})
    found = _answers(roomy, 256, 128, 10**9, False, Silent())
    assert found is not None
    np.testing.assert_array_equal(found, first[:2])
    assert _answers(roomy, 256, 128, 1000, False, Silent()) is None  # too little memory
    assert _answers(opened, 256, 128, 10**9, False, Silent()) is None  # too short a context
    opened.source.close()


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('begin with a system message') }}", "begin with a system message"),
        ("{% for m in messages %", "end of template"),
        ("{{ '' }}", "writes nothing"),
    ],
)
def test_a_template_that_refuses_questions_leaves_the_text_without_chats(
    copied, template: str, reason: str
) -> None:
    from torch2mlx.calibration.conversion import _answers
    from torch2mlx.progress import Silent
    from torch2mlx.sources import open_checkpoint

    source = copied("llama_short")
    (source / "chat_template.jinja").write_text(template)
    opened = open_checkpoint(source)
    roomy = replace(opened, config={**opened.config, "max_position_embeddings": 1024})
    told = []
    listener = Silent()
    listener.note = told.append
    assert _answers(roomy, 256, 128, 10**9, False, listener) is None
    opened.source.close()
    assert len(told) == 1
    assert reason in told[0]


def test_chats_that_the_template_refuses_are_named(copied, tmp_path: Path) -> None:
    from torch2mlx.calibration.conversion import text_ids
    from torch2mlx.errors import SourceError
    from torch2mlx.sources import open_checkpoint

    source = copied("llama_short")
    refusing = (
        "{% if messages[0].role != 'user' %}{{ raise_exception('a user begins') }}{% endif %}"
    )
    (source / "chat_template.jinja").write_text(refusing)
    opened = open_checkpoint(source)
    path = tmp_path / "data.jsonl"
    for entry, reason in (
        ({"messages": [{"role": "assistant", "content": "me"}]}, "a user begins"),
        ({"messages": ["who?"]}, "entry 1: expected"),
        ({"messages": []}, "entry 1: expected"),
    ):
        path.write_text(json.dumps(entry))
        with pytest.raises(SourceError, match=reason) as caught:
            text_ids(opened, [str(path)], 64, 64, False)
        assert str(path) in str(caught.value)
    path.write_text(json.dumps({"prompt": "and the stars " * 20, "completion": None}))
    found = text_ids(opened, [str(path)], 32, 32, False)
    opened.source.close()
    assert found.shape == (1, 32)


def test_chats_and_lines_of_json_give_their_texts(checkpoint, tmp_path: Path) -> None:
    """Against the tokenizer's own rendering."""
    from transformers import AutoTokenizer

    from torch2mlx.calibration.conversion import text_ids
    from torch2mlx.sources import open_checkpoint

    chat = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "me " * 60}]
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"messages": chat}) + "\n")
    source = checkpoint("llama_tied")
    opened = open_checkpoint(source)
    found = text_ids(opened, [str(path)], 64, 64, False)
    tokenizer = AutoTokenizer.from_pretrained(source)
    rendered = tokenizer.apply_chat_template(chat, tokenize=False)
    assert found.tolist() == [tokenizer(rendered).input_ids[:64]]
    pair = {"prompt": "and the stars ", "completion": "go " * 50}
    lines = [{"text": "the sun rises " * 20}, pair]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    found = text_ids(opened, [str(path)], 64, 64, False)
    joined = "the sun rises " * 20 + "\n\n" + "and the stars " + "go " * 50
    assert found.tolist() == [tokenizer(joined).input_ids[:64]]
    again = text_ids(opened, [str(path)], 64, 64, False)
    opened.source.close()
    np.testing.assert_array_equal(found, again)


def test_experts_that_saw_few_tokens_are_calibrated_and_counted(
    checkpoint, run_cli, tmp_path: Path, text: Path
) -> None:
    run = run_cli(
        "convert", checkpoint("qwen3_moe"), tmp_path / "out", "-q", "--calibrate",
        "--calibration-text", text, "--calibration-tokens", "64", "--max-context", "64", "--quiet",
    )  # fmt: skip
    assert run.code == 0, run.message
    manifest = json.loads((tmp_path / "out" / "torch2mlx.json").read_text())
    notes = manifest["plan"]["notes"]
    few = "expert matrices saw few calibration tokens and were calibrated with the inputs of all"
    assert any(few in note for note in notes)
    experts = [m for m in manifest["plan"]["schemes"] if "switch_mlp" in m]
    assert len(experts) == 9
    counts = manifest["verification"]["audit"]["counts"]
    assert not any("switch_mlp" in n for n in notes if n.startswith("rounded to nearest"))
    assert counts["calibrated"] >= 20
