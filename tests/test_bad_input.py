"""What goes wrong at a user's desk: one message, the right exit code, nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WEIGHTS = "model.safetensors"

Copied = Callable[..., Path]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where outputs go; nothing may be left in it."""
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


@pytest.fixture
def fails(run_cli: Callable[..., Any], place: Path) -> Callable[..., str]:
    """Run a conversion that must fail with an exit code, in one message that has all the words."""

    def run(
        source: Path, *options: object, code: int, words: tuple[str, ...], destination: str = "out"
    ) -> str:
        before = sorted(place.rglob("*"))
        done = run_cli("convert", source, place / destination, *options)
        assert done.code == code, done
        assert "Traceback" not in done.err
        assert done.out == ""
        assert done.err.count("error: ") == 1
        message = " ".join(done.err.split("error: ")[1].split())
        for word in words:
            assert word in message, f"{word!r} is not in: {message}"
        assert sorted(place.rglob("*")) == before
        return message

    return run


def _split(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:start]), data[start:]


def _join(path: Path, header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def _edit_tensors(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite the weight file after a change of its {name: (dtype, shape, bytes)}."""
    path = folder / WEIGHTS
    header, data = _split(path)
    tensors = {
        name: (e["dtype"], e["shape"], data[slice(*e["data_offsets"])])
        for name, e in header.items()
        if name != "__metadata__"
    }
    change(tensors)
    entries, parts, position = {}, [], 0
    for name, (dtype, shape, part) in tensors.items():
        span = [position, position + len(part)]
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": span}
        parts.append(part)
        position += len(part)
    _join(path, {"__metadata__": {"format": "pt"}, **entries}, b"".join(parts))


def _poke(folder: Path, name: str, index: int, value: float) -> None:
    """Set one element of a float32 tensor."""

    def change(tensors: dict[str, Any]) -> None:
        dtype, shape, part = tensors[name]
        assert dtype == "F32"
        values = np.frombuffer(part, "<f4").copy()
        values[index] = value
        tensors[name] = (dtype, shape, values.tobytes())

    _edit_tensors(folder, change)


def _edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


# The checkpoint's files.


def _sharded(copied: Copied) -> Path:
    return copied("llama", shard_size="300KB")


def _second_shard(folder: Path) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[1]


def test_missing_shard(copied: Copied, fails: Callable[..., str]) -> None:
    source = _sharded(copied)
    shard = _second_shard(source)
    shard.unlink()
    fails(source, code=3, words=(shard.name, "missing", "download"))


def test_truncated_shard(copied: Copied, fails: Callable[..., str]) -> None:
    source = _sharded(copied)
    shard = _second_shard(source)
    os.truncate(shard, shard.stat().st_size - 10)
    fails(source, code=3, words=(str(shard), "truncated", "download it again"))


def test_empty_shard(copied: Copied, fails: Callable[..., str]) -> None:
    source = _sharded(copied)
    os.truncate(_second_shard(source), 0)
    fails(source, code=3, words=(_second_shard(source).name, "0 bytes", "download it again"))


def test_git_lfs_pointer(copied: Copied, fails: Callable[..., str]) -> None:
    source = copied("llama")
    (source / WEIGHTS).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
    )
    fails(source, code=3, words=(WEIGHTS, "Git LFS pointer", "git lfs pull"))


def _edit_index(source: Path, change: Callable[[dict[str, str]], None]) -> None:
    path = source / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def test_index_that_names_a_missing_file(copied: Copied, fails: Callable[..., str]) -> None:
    source = _sharded(copied)
    _edit_index(source, lambda m: m.update({"lm_head.weight": "model-00099.safetensors"}))
    fails(source, code=3, words=("model-00099.safetensors", "missing"))


@pytest.mark.parametrize("outside", ["../secret.safetensors", "/etc/secret.safetensors"])
def test_index_that_leaves_the_folder(
    outside: str, copied: Copied, fails: Callable[..., str]
) -> None:
    source = _sharded(copied)
    _edit_index(source, lambda m: m.update({"lm_head.weight": outside}))
    fails(source, code=3, words=("model.safetensors.index.json", outside, "outside of the folder"))


def test_two_sets_of_weights(copied: Copied, fails: Callable[..., str]) -> None:
    source = _sharded(copied)
    shutil.copy(_second_shard(source), source / WEIGHTS)
    fails(source, code=3, words=("several sets", WEIGHTS, "Give one of their files"))


def test_missing_tensor(copied: Copied, fails: Callable[..., str]) -> None:
    source = copied("llama")
    name = "model.layers.1.mlp.up_proj.weight"
    _edit_tensors(source, lambda t: t.pop(name))
    fails(source, code=5, words=(f"missing: {name} [256, 128]",))


def test_missing_expert(copied: Copied, fails: Callable[..., str]) -> None:
    source = copied("mixtral")
    name = next(n for n in _split(source / WEIGHTS)[0] if ".experts.2." in n)
    _edit_tensors(source, lambda t: t.pop(name))
    fails(source, code=5, words=(name,))


def test_extra_tensor(copied: Copied, fails: Callable[..., str]) -> None:
    source = copied("llama")
    extra = "model.layers.1.mlp.gate_proj.bias"
    _edit_tensors(source, lambda t: t.update({extra: ("BF16", [256], bytes(512))}))
    fails(source, code=5, words=(f"unexpected: {extra} [256]",))


def test_misshapen_tensor(copied: Copied, fails: Callable[..., str]) -> None:
    source = copied("llama")
    name = "model.layers.0.self_attn.k_proj.weight"
    _edit_tensors(source, lambda t: t.update({name: ("BF16", [32, 128], t[name][2][:8192])}))
    fails(source, code=5, words=(f"misshapen: {name} should be [64, 128]", "[32, 128]"))


def test_every_problem_is_in_one_message(copied: Copied, fails: Callable[..., str]) -> None:
    source = copied("llama")
    for name in ("model.norm.weight", "model.layers.2.mlp.down_proj.weight"):
        _edit_tensors(source, lambda t, n=name: t.pop(n))  # type: ignore[misc]
    fails(source, code=5, words=("2 problems", "model.norm.weight", "layers.2.mlp.down_proj"))


# Numbers.


@pytest.mark.parametrize("quantize", [(), ("-q",)], ids=["plain", "quantized"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_a_number(
    value: float, quantize: tuple[str, ...], copied: Copied, fails: Callable[..., str]
) -> None:
    source = copied("llama", "float32")
    name = "model.layers.1.mlp.down_proj.weight"
    _poke(source, name, 256 * 5 + 7, value)
    fails(source, *quantize, code=6, words=(name, "NaN or Inf", "rows"))


def test_overflow(copied: Copied, fails: Callable[..., str]) -> None:
    source = copied("llama", "float32")
    name = "model.layers.1.mlp.down_proj.weight"
    _poke(source, name, 0, 1e6)
    words = (name, "overflows float16", "--dtype bfloat16")
    fails(source, "--dtype", "float16", code=6, words=words)
    fails(source, "-q", "--dtype", "float16", code=6, words=words)


def test_complex_numbers_are_no_weights(copied: Copied, fails: Callable[..., str]) -> None:
    source = copied("llama_short", "float32")
    name = "model.layers.0.mlp.down_proj.weight"

    def edit(tensors: dict[str, Any]) -> None:
        _, shape, data = tensors[name]
        tensors[name] = ("C64", shape, (np.frombuffer(data, "<f4") * 1j).astype("<c8").tobytes())

    _edit_tensors(source, edit)
    for options in ((), ("-q", "--no-verify")):
        fails(source, *options, code=5, words=(f"complex: {name}",))


def test_codes_without_scales_are_the_numbers_that_pytorch_takes_them_for(
    copied: Copied, run_cli: Callable[..., Any], place: Path, read_weights: Callable[..., Any]
) -> None:
    source = copied("llama_short", "float32")
    small, whole = (f"model.layers.0.mlp.{n}_proj.weight" for n in ("down", "up"))
    values = np.random.default_rng(0).integers(-9, 9, (256, 128), np.int8)

    def edit(tensors: dict[str, Any]) -> None:
        # Of 4 exponent bits, biased by 7, and 3 of the fraction: 0x18 to 0x37 are 1/16 to 15/16.
        codes = np.random.default_rng(1).integers(0x18, 0x38, 256 * 128, np.uint8)
        tensors[small] = ("F8_E4M3", [128, 256], codes.tobytes())
        tensors[whole] = ("I8", [256, 128], values.tobytes())

    _edit_tensors(source, edit)
    done = run_cli("convert", source, place / "out")
    assert done.code == 0, done
    assert f"whole numbers are taken as such (1, the first: {whole})" in done.message
    written = read_weights(place / "out")
    assert written[whole] == ("F32", [256, 128], values.astype("<f4").tobytes())
    decoded = np.frombuffer(written[small][2], "<f4")
    assert decoded.min() == 1 / 16
    assert decoded.max() == 15 / 16
    assert run_cli("convert", source, place / "q", "-q", "--no-verify").code == 0


# The config.


def test_unknown_model_type(copied: Copied, fails: Callable[..., str]) -> None:
    source = copied("llama")
    _edit_config(source, model_type="llamma")
    fails(source, code=4, words=("'llamma'", "no port in mlx-lm", "similar: llama"))


def test_no_model_type(copied: Copied, fails: Callable[..., str]) -> None:
    source = copied("llama")
    _edit_config(source, model_type=None)
    fails(source, code=3, words=("config.json", "model_type"))


def test_settings_of_the_wrong_type(copied: Copied, fails: Callable[..., str]) -> None:
    source = copied("llama")
    _edit_config(source, architectures="LlamaForCausalLM")
    fails(source, code=3, words=("architectures to be a list", "LlamaForCausalLM"))
    _edit_config(source, architectures=None, hidden_size="wide")
    fails(source, code=4, words=("mlx_lm.models.llama cannot be built", "config.json"))


def test_settings_that_pytorch_refuses(copied: Copied, fails: Callable[..., str]) -> None:
    source = copied("mixtral")
    _edit_config(source, head_dim=-1)  # mlx-lm's port does not read it
    fails(source, code=4, words=("PyTorch's MixtralForCausalLM cannot be built", "config.json"))


def test_stop_ids_that_are_none_are_ignored(
    copied: Copied, run_cli: Callable[..., Any], place: Path
) -> None:
    source = copied("llama")
    path = source / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": {"a": 1}}))
    done = run_cli("convert", source, place / "out", "--no-verify")
    assert done.code == 0
    assert "eos_token_id {'a': 1} is no token id" in done.message


def test_broken_tokenizer_is_said_once(
    copied: Copied, run_cli: Callable[..., Any], place: Path
) -> None:
    source = copied("llama")
    (source / "tokenizer.json").write_text("{")
    done = run_cli("convert", source, place / "out", "--no-verify")
    assert done.code == 0
    assert done.message.count("its tokenizer cannot be loaded") == 1
    assert f"tokenizer not checked: {source}" in done.message


def test_missing_setting(copied: Copied, fails: Callable[..., str]) -> None:
    source = copied("llama")
    config = json.loads((source / "config.json").read_text())
    del config["num_hidden_layers"]
    (source / "config.json").write_text(json.dumps(config))
    fails(source, code=5, words=("mlx_lm.models.llama", "config.json differs"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ("config.json", "no such file")),
        ("{", ("config.json", "not valid JSON")),
        ("", ("config.json", "not valid JSON")),
        ("[1]", ("config.json", "expected a JSON object, found an array")),
    ],
)
def test_broken_config(
    text: str | None, words: tuple[str, ...], copied: Copied, fails: Callable[..., str]
) -> None:
    source = copied("llama")
    (source / "config.json").unlink()
    if text is not None:
        (source / "config.json").write_text(text)
    fails(source, code=3, words=words)


def test_config_of_another_size(copied: Copied, fails: Callable[..., str]) -> None:
    source = copied("llama")
    _edit_config(source, num_hidden_layers=4)
    fails(source, code=5, words=("missing: model.layers.3.", "config.json differs"))


# The destination.


def test_destination_exists(
    checkpoint: Callable[..., Path], fails: Callable[..., str], place: Path
) -> None:
    source = checkpoint("llama")
    (place / "file").write_text("mine")
    (place / "folder").mkdir()
    (place / "folder" / "notes.txt").write_text("mine")
    (place / "empty").mkdir()
    (place / "link").symlink_to(place / "nowhere")
    for name in ("file", "folder", "empty", "link"):
        words = (str(place / name), "exists already", "remove")
        fails(source, code=7, words=words, destination=name)
    assert (place / "file").read_text() == "mine"
    assert (place / "folder" / "notes.txt").read_text() == "mine"


def test_destination_with_an_impossible_name(
    checkpoint: Callable[..., Path], fails: Callable[..., str]
) -> None:
    words = ("File name too long", "choose another name")
    fails(checkpoint("llama"), code=7, words=words, destination="a" * 300)


def test_destination_below_a_file(
    checkpoint: Callable[..., Path], fails: Callable[..., str], place: Path
) -> None:
    (place / "file").write_text("mine")
    fails(checkpoint("llama"), code=7, words=("is a file",), destination="file/out")


def test_unwritable_destination(
    checkpoint: Callable[..., Path], fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path.mkdir

    def mkdir(self: Path, *arguments: Any, **options: Any) -> None:
        if self.name.startswith(".out"):
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        original(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    words = ("out cannot be written", "Permission denied", "change its permissions")
    fails(checkpoint("llama"), "--no-verify", code=7, words=words)


def test_new_parents_of_a_failed_output_are_removed(
    copied: Copied, fails: Callable[..., str]
) -> None:
    source = copied("llama", "float32")
    _poke(source, "lm_head.weight", 0, np.nan)
    fails(source, code=6, words=("lm_head",), destination="a/b/out")


def test_full_disk_is_seen_before_anything_is_written(
    checkpoint: Callable[..., Path], fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    words = ("no room", "1.0 kB free", "another disk")
    fails(checkpoint("llama"), "--no-verify", code=7, words=words)


def test_disk_that_becomes_full(
    checkpoint: Callable[..., Path], fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = os.pwrite, []

    def pwrite(handle: int, data: Any, offset: int) -> int:
        calls.append(offset)
        if len(calls) > 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    words = (WEIGHTS, "disk is full", "free space")
    fails(checkpoint("llama"), "--no-verify", code=7, words=words)


# Not a checkpoint.


def test_not_a_checkpoint(tmp_path: Path, fails: Callable[..., str]) -> None:
    folder = tmp_path / "holiday"
    folder.mkdir()
    fails(folder, code=3, words=(str(folder), "the folder is empty"))
    (folder / "beach.jpg").write_bytes(b"\xff\xd8")
    fails(folder, code=3, words=("not a checkpoint", "beach.jpg", ".safetensors"))
    fails(folder / "beach.jpg", code=3, words=("not a weight file",))
    fails(folder / "nothing", code=3, words=("no such file or folder",))


def test_no_tokenizer_is_a_warning(
    copied: Copied, run_cli: Callable[..., Any], place: Path
) -> None:
    source = copied("llama")
    for path in source.glob("*token*"):
        path.unlink()
    (source / "chat_template.jinja").unlink()
    done = run_cli("convert", source, place / "out")
    assert done.code == 0
    assert "the checkpoint has no tokenizer" in done.message
    assert "`torch2mlx generate` will not work" in done.message
    failed = run_cli("generate", place / "out", "-p", "Hello")
    assert failed.code == 3
    assert "tokenizer" in failed.message
    assert "Traceback" not in failed.err


# Options.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--q-bits", 4), ("--q-bits", "add -q")),
        (("--keep", "lm_head", "--router", "keep"), ("--keep, --router", "add -q")),
        (("--strict",), ("--strict", "add -q")),
        (("--q-bits", 0), ("--q-bits", "add -q")),
        (("-q", "--q-bits", 7), ("7", "2, 3, 4, 5, 6")),
        (("-q", "--q-bits", 0), ("0",)),
        (("-q", "--q-group-size", 48), ("48", "32, 64")),
        (("-q", "--q-mode", "mxfp4", "--q-bits", 8), ("mxfp4", "8")),
        (("-q", "--q-bits", 4, "--recipe", "mixed_4_6"), ("mixed_4_6", "leave out --q-bits")),
        (("-q", "--keep", "*.q_porj"), ("'*.q_porj' matches no", "q_proj")),
        (("-q", "--bits", "vision.*=6"), ("'vision.*' matches no",)),
        (("-q", "--bits", "q_proj"), ("'q_proj'", "pattern=bits")),
        (("-q", "--embedding", "big"), ("--embedding big", "number of bits, or keep")),
        (("-q", "--keep", "*"), ("no module would be quantized", "--keep '*'")),
        (("-q", "--max-kl", "-1"), ("--max-kl -1", "0 or more")),
        (("-q", "--max-kl", "nan"), ("--max-kl nan", "0 or more")),
        (("-q", "--max-perplexity", "nan"), ("--max-perplexity nan", "1 or more")),
        (("--max-shard-size", "5 apples"), ("--max-shard-size '5 apples'", "4GB")),
        (("--max-shard-size", "0"), ("--max-shard-size '0'", "positive")),
        (("--memory-limit", "1MB"), ("--memory-limit", "too small")),
        (("--max-context", 1), ("--max-context 1", "at least 2")),
    ],
    ids=lambda value: "_".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_options(
    options: tuple[Any, ...],
    words: tuple[str, ...],
    checkpoint: Callable[..., Path],
    fails: Callable[..., str],
) -> None:
    fails(checkpoint("llama"), *options, code=2, words=words)


def test_typing_errors_are_usage_errors(
    checkpoint: Callable[..., Path], run_cli: Callable[..., Any], place: Path
) -> None:
    for options in (("four", "--q-bits"), ("int8", "--dtype"), ("x", "--no-such-option")):
        value, flag = options
        done = run_cli("convert", checkpoint("llama"), place / "out", flag, value)
        assert done.code == 2
        assert flag in done.message
        assert "Traceback" not in done.err
    assert run_cli("convert").code == 2


def test_head_option_of_a_tied_model(
    checkpoint: Callable[..., Path], fails: Callable[..., str]
) -> None:
    words = ("no separate output head", "embedding option")
    fails(checkpoint("llama_tied"), "-q", "--head", 8, code=2, words=words)


def test_tensor_larger_than_a_shard(
    checkpoint: Callable[..., Path], fails: Callable[..., str]
) -> None:
    words = ("alone needs", "--max-shard-size")
    message = fails(checkpoint("llama"), "--max-shard-size", "70KB", code=2, words=words)
    assert message.count("alone needs") == 1
    assert int(re.findall(r"--max-shard-size (\d+)", message)[0]) > 288 * 128 * 2


def test_group_size_that_divides_nothing(
    checkpoint: Callable[..., Path],
    run_cli: Callable[..., Any],
    fails: Callable[..., str],
    place: Path,
) -> None:
    source = checkpoint("llama_wide")
    done = run_cli("convert", source, place / "out", "-q", "--json")
    assert done.code == 0
    assert "unquantized, 16 bits per weight, because width 272" in done.message
    assert "(3 modules): model.layers.*.mlp.down_proj" in done.message
    manifest = json.loads(done.out)
    assert "272" in manifest["plan"]["reasons"]["model.layers.0.mlp.down_proj"]
    assert 4.5 < manifest["weights"]["bits_per_weight"] < 16
    shutil.rmtree(place / "out")
    words = ("3 modules cannot be quantized", "model.layers.0.mlp.down_proj", "272")
    fails(source, "-q", "--strict", code=2, words=words)


def test_errors_as_json(
    checkpoint: Callable[..., Path], run_cli: Callable[..., Any], place: Path
) -> None:
    done = run_cli("convert", checkpoint("llama"), place / "out", "--q-bits", 4, "--json")
    assert done.code == 2
    error = json.loads(done.out)["error"]
    assert error["type"] == "OptionError"
    assert "add -q" in error["message"]
    assert done.err == ""


# Interruption.


class _Interrupting:
    """A listener at whose stage the user presses Ctrl-C."""

    def __init__(self, at: str) -> None:
        self.at = at
        self.reached = False

    @contextmanager
    def stage(self, title: str, total_bytes: int | None = None) -> Iterator[Callable[[int], None]]:
        here = title.startswith(self.at)
        if here and total_bytes is None:
            self.reached = True
            raise KeyboardInterrupt

        def advance(count: int) -> None:
            if here:
                self.reached = True
                raise KeyboardInterrupt

        yield advance

    def note(self, text: str) -> None:
        pass


@pytest.mark.parametrize("stage", ["Planning", "Proving", "Converting", "Copying", "Auditing"])
def test_interruption(
    stage: str,
    checkpoint: Callable[..., Path],
    run_cli: Callable[..., Any],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listener = _Interrupting(stage)
    monkeypatch.setattr("torch2mlx.cli.conversion.progress_bars", lambda quiet: listener)
    as_json = ("--json",) if stage == "Planning" else ()
    done = run_cli("convert", checkpoint("llama"), place / "a" / "out", *as_json)
    assert listener.reached
    assert done.code == 130
    told = json.loads(done.out)["error"]["message"] if as_json else done.err
    assert "interrupted" in told
    assert "Traceback" not in done.err
    if stage in ("Copying", "Auditing"):  # weights are finished: the next run takes them over
        assert "1 finished file is kept" in done.message
        assert [p.name.split("-")[0] for p in (place / "a").iterdir()] == [".out.torch2mlx"]
    else:
        assert list(place.iterdir()) == []


# Wrong results.


def test_wrong_rope_in_the_port(
    checkpoint: Callable[..., Path], fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_lm.models import llama

    initialize = llama.initialize_rope
    monkeypatch.setattr(
        llama, "initialize_rope", lambda dims, base, *a, **k: initialize(dims, 10_000.0, *a, **k)
    )
    monkeypatch.setattr("torch2mlx.routing.may_generate", lambda _: False)
    words = ("twin", "the MLX model differs from PyTorch", "layer 0", "nothing was published")
    fails(checkpoint("llama"), code=8, words=words)


def test_wrong_activation_in_the_port(
    checkpoint: Callable[..., Path], fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlx.nn as nn
    from mlx_lm.models import llama

    monkeypatch.setattr(llama, "swiglu", lambda gate, x: nn.gelu(gate) * x)
    monkeypatch.setattr("torch2mlx.routing.may_generate", lambda _: False)
    words = ("the MLX model differs from PyTorch", "layer 0", "--no-verify")
    fails(checkpoint("llama"), code=8, words=words)


@pytest.mark.slow
def test_a_wrong_port_gives_way_to_a_generated_one(
    checkpoint: Callable[..., Path],
    run_cli: Callable[..., Any],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import mlx.nn as nn
    from mlx_lm.models import llama

    monkeypatch.setattr(llama, "swiglu", lambda gate, x: nn.gelu(gate) * x)
    done = run_cli("convert", checkpoint("llama"), place / "out")
    assert done.code == 0, done
    manifest = json.loads((place / "out" / "torch2mlx.json").read_text())
    assert manifest["plan"]["port"] == "model.py"
    assert (place / "out" / "model.py").exists()


def test_without_verification_the_manifest_says_so(
    checkpoint: Callable[..., Path], run_cli: Callable[..., Any], place: Path
) -> None:
    assert run_cli("convert", checkpoint("llama"), place / "out", "--no-verify").code == 0
    manifest = json.loads((place / "out" / "torch2mlx.json").read_text())
    assert manifest["verification"] == {"skipped": True}


@pytest.mark.parametrize("options", [(), ("-q",)], ids=["plain", "quantized"])
def test_flipped_bit_in_a_written_file(
    options: tuple[str, ...],
    checkpoint: Callable[..., Path],
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch2mlx.conversion import executor

    execute = executor.execute_together

    def corrupt(targets: Any, *arguments: Any, **options: Any) -> None:
        execute(targets, *arguments, **options)
        file = targets[0].folder / targets[0].plan.shards[0].file
        header, _ = _split(file)
        offset = header["model.layers.1.mlp.up_proj.weight"]["data_offsets"][0]
        data = bytearray(file.read_bytes())
        data[8 + int.from_bytes(data[:8], "little") + offset + 100] ^= 1
        file.write_bytes(data)

    monkeypatch.setattr(executor, "execute_together", corrupt)
    words = ("audit", "model.layers.1.mlp.up_proj", "1 of")
    fails(checkpoint("llama"), *options, code=8, words=words)


def test_real_process(copied: Copied, place: Path) -> None:
    """One mistake through a process of its own: the message is all that stderr has."""
    source = copied("llama")
    (source / "config.json").write_text("{")
    command = [sys.executable, "-m", "torch2mlx", "convert", str(source), str(place / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "config.json" in done.stderr
    assert list(place.iterdir()) == []
