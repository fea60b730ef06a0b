"""Which files make the checkpoint, what comes along, and one clear message for bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from torch2mlx.errors import SourceError
from torch2mlx.sources import Checkpoint, open_checkpoint

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 9\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    return path


def put(folder: Path, name: str, *tensors: str) -> Path:
    save_file({tensor: torch.ones(2) for tensor in tensors}, folder / name)
    return folder / name


def put_index(folder: Path, weight_map: Any, name: str = "model.safetensors.index.json") -> None:
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def sharded(folder: Path, total: int = 2) -> list[str]:
    names = [f"model-{i + 1:05d}-of-{total:05d}.safetensors" for i in range(total)]
    for number, name in enumerate(names):
        put(folder, name, f"w{number}")
    put_index(folder, {f"w{number}": name for number, name in enumerate(names)})
    return names


def files(checkpoint: Checkpoint) -> list[str]:
    return [path.name for path in checkpoint.source.files]


@pytest.mark.parametrize(
    "name", ["model.safetensors", "weights.safetensors", "diffusion_pytorch_model.safetensors"]
)
def test_single_file(folder: Path, name: str) -> None:
    path = put(folder, name, "w")
    for location in (folder, path, str(path)):
        checkpoint = open_checkpoint(location)
        assert (checkpoint.kind, set(checkpoint.state)) == ("safetensors", {"w"})
        assert checkpoint.folder == folder
        assert checkpoint.location == str(location)
        assert checkpoint.notes == ()


def test_shards_with_and_without_index(folder: Path) -> None:
    names = sharded(folder, 3)
    for location in (
        folder,
        folder / names[1],
        folder / "model.safetensors.index.json",
    ):
        assert files(open_checkpoint(location)) == names
    (folder / "model.safetensors.index.json").unlink()
    assert files(open_checkpoint(folder)) == names
    assert files(open_checkpoint(folder / names[2])) == names
    (folder / names[0]).unlink()
    (folder / names[2]).unlink()
    with pytest.raises(
        SourceError, match=f"2 of 3 weight files are missing: {names[0]}, {names[2]}"
    ):
        open_checkpoint(folder)


def test_missing_shards_of_an_index_are_all_named(folder: Path) -> None:
    names = sharded(folder, 4)
    for name in names[1:3]:
        (folder / name).unlink()
    with pytest.raises(SourceError, match=f"2 of 4 .* missing: {names[1]}, {names[2]}"):
        open_checkpoint(folder)
    for name in names:
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(SourceError, match="4 of 4"):
        open_checkpoint(folder)


def test_truncated_and_pointer_shards_are_named(folder: Path) -> None:
    names = sharded(folder)
    data = (folder / names[1]).read_bytes()
    (folder / names[1]).write_bytes(data[:-3])
    with pytest.raises(SourceError, match=f"{names[1]}: truncated"):
        open_checkpoint(folder)
    (folder / names[1]).write_text(LFS)
    with pytest.raises(SourceError, match=f"{names[1]}: this is a Git LFS pointer"):
        open_checkpoint(folder)


def test_several_sets_are_not_guessed_between(folder: Path) -> None:
    names = sharded(folder)
    put(folder, "model.safetensors", "w0", "w1")
    with pytest.raises(SourceError, match=r"model\.safetensors\.index\.json.*; model\.safetensors"):
        open_checkpoint(folder)
    assert files(open_checkpoint(folder / "model.safetensors")) == ["model.safetensors"]
    assert files(open_checkpoint(folder / names[0])) == names
    (folder / "model.safetensors").unlink()

    put(folder, "model-00003-of-00003.safetensors", "stale")
    with pytest.raises(SourceError, match=r"model-00003-of-00003\.safetensors.*Give one of"):
        open_checkpoint(folder)
    (folder / "model-00003-of-00003.safetensors").unlink()

    put(folder, "consolidated.safetensors", "w0", "w1")
    checkpoint = open_checkpoint(folder)
    assert files(checkpoint) == names
    assert any("consolidated.safetensors" in note for note in checkpoint.notes)
    put_index(folder, {"w0": names[0], "w1": names[1]}, "model.fp16.safetensors.index.json")
    with pytest.raises(SourceError, match=r"model\.fp16\.safetensors\.index\.json"):
        open_checkpoint(folder)


def test_oddly_named_pair_is_ambiguous_but_model_wins(folder: Path) -> None:
    put(folder, "a.safetensors", "w")
    put(folder, "b.safetensors", "w")
    with pytest.raises(SourceError, match=r"a\.safetensors; b\.safetensors"):
        open_checkpoint(folder)
    put(folder, "model.safetensors", "w")
    checkpoint = open_checkpoint(folder)
    assert files(checkpoint) == ["model.safetensors"]
    assert len(checkpoint.notes) == 2


def test_two_usual_names_are_ambiguous(folder: Path) -> None:
    torch.save({"w": torch.ones(2)}, folder / "pytorch_model.bin")
    torch.save({"w": torch.ones(2)}, folder / "model.pt")
    with pytest.raises(SourceError, match=r"model\.pt; pytorch_model\.bin"):
        open_checkpoint(folder)


def test_opening_imports_no_framework(folder: Path) -> None:
    """Headers are enough to look at a checkpoint; torch and transformers take seconds."""
    put(folder, "model.safetensors", "w")
    torch.save({"w": torch.ones(2)}, folder / "weights.pt")
    code = (
        "import sys; from torch2mlx.sources import open_checkpoint\n"
        "for path in sys.argv[1:]: open_checkpoint(path).source.read('w')\n"
        "slow = {'torch', 'transformers', 'safetensors', 'huggingface_hub'} & set(sys.modules)\n"
        "sys.exit(', '.join(slow) or 0)"
    )
    arguments = [str(folder / "model.safetensors"), str(folder / "weights.pt")]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)


def test_safetensors_before_bin(folder: Path) -> None:
    put(folder, "model.safetensors", "w")
    torch.save({"w": torch.ones(2)}, folder / "pytorch_model.bin")
    torch.save({"lr": 1}, folder / "training_args.bin")
    (folder / "._model.safetensors").write_bytes(b"junk of macOS")
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.kind, files(checkpoint)) == ("safetensors", ["model.safetensors"])
    assert [note for note in checkpoint.notes if "pytorch_model.bin" in note]
    assert not any("training_args" in note for note in checkpoint.notes)
    assert open_checkpoint(folder / "pytorch_model.bin").kind == "torch"


@pytest.mark.parametrize(
    "place", ["../secret.safetensors", "/etc/x.safetensors", "C:\\x.safetensors"]
)
def test_index_that_leaves_the_folder(folder: Path, place: str) -> None:
    put(folder.parent, "secret.safetensors", "w")
    put(folder, "model-00001-of-00002.safetensors", "v")
    put_index(folder, {"w": place, "v": "model-00001-of-00002.safetensors"})
    with pytest.raises(SourceError, match=r"outside of the folder"):
        open_checkpoint(folder)


def test_links(folder: Path) -> None:
    names = sharded(folder)
    outside = put(folder.parent, "outside.safetensors", "w1")
    (folder / names[1]).unlink()
    (folder / names[1]).symlink_to(outside)
    with pytest.raises(SourceError, match=r"outside\.safetensors, which is outside"):
        open_checkpoint(folder)
    cache = folder.parent / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (folder / names[1]).unlink()
    put(folder, names[1], "w1")
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(cache / "blobs" / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    assert files(open_checkpoint(snapshot)) == names
    link = folder.parent / "dangling"
    link.symlink_to("nowhere")
    with pytest.raises(SourceError, match="a link to nowhere"):
        open_checkpoint(link)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object, found an array"),
        ("{}", "'weight_map'"),
        ('{"weight_map": []}', "'weight_map'"),
        ('{"weight_map": {"w": 3}}', "expected a file name, found 3"),
        ('{"weight_map": {"w": "config.json"}}', "no safetensors file"),
        ('{"weight_map": {"v": "model-00001-of-00001.safetensors"}}', "do not hold them there"),
        (LFS, "git lfs pull"),
    ],
)
def test_broken_index(folder: Path, text: str, words: str) -> None:
    put(folder, "model-00001-of-00001.safetensors", "w")
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(SourceError, match=words):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", r"config\.json: not valid JSON"),
        ("[1]", "expected a JSON object, found an array"),
        ("null", "found null"),
        ("{}", "'model_type' such as"),
        ('{"model_type": ""}', "'model_type' such as"),
        (None, "no such file; it says which model"),
        (LFS, "git lfs pull"),
    ],
)
def test_broken_config(folder: Path, text: str | None, words: str) -> None:
    put(folder, "model.safetensors", "w")
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    with pytest.raises(SourceError, match=words):
        open_checkpoint(folder)


def test_config_as_transformers_writes_it(folder: Path) -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(hidden_size=64)
    config.limit = float("inf")
    config.nested = {"low": float("-inf")}
    config.save_pretrained(folder)
    assert "__float__" in (folder / "config.json").read_text()
    put(folder, "model.safetensors", "w")
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config["limit"] == float("inf")
    assert checkpoint.config["nested"] == {"low": float("-inf")}
    assert checkpoint.config["hidden_size"] == 64
    assert checkpoint.generation_config == {"eos_token_id": [1, 2]}


COMPANIONS = (
    "tokenizer.json tokenizer.model tokenizer_config.json special_tokens_map.json "
    "added_tokens.json vocab.json merges.txt qwen.tiktoken tekken.json chat_template.jinja "
    "chat_template.json additional_chat_templates/rag.jinja preprocessor_config.json "
    "processor_config.json video_preprocessor_config.json generation_config.json spiece.model "
    "sentencepiece.bpe.model vocab.txt tokenizer.model.v3 source.spm LICENSE LICENSE.txt NOTICE"
).split()


def test_companions(folder: Path) -> None:
    put(folder, "model.safetensors", "w")
    (folder / "additional_chat_templates").mkdir()
    for name in COMPANIONS:
        (folder / name).write_text("{}")
    for name in ("README.md", "notes.txt", "training_args.bin", "trainer_state.json", "x.png"):
        (folder / name).write_text("{}")
    (folder / "modeling_x.py").write_text("raise SystemExit")
    found = open_checkpoint(folder).tokenizer_files
    assert set(found) == set(COMPANIONS)
    assert all(path == folder / name for name, path in found.items())
    trusted = open_checkpoint(folder, trust_remote_code=True).tokenizer_files
    assert set(trusted) == {*COMPANIONS, "modeling_x.py"}
    (folder / "tokenizer.json").write_text(LFS)
    with pytest.raises(SourceError, match=r"tokenizer\.json: this is a Git LFS pointer"):
        open_checkpoint(folder)


def test_not_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for location, words in [
        (empty, "the folder is empty"),
        (folder, r"not a checkpoint: no \.safetensors.*found config\.json"),
        (folder / "config.json", "not a weight file"),
        ("", "SRC is an empty text"),
        (tmp_path, "holds only folders; give one of .*model"),
        (tmp_path / "gone", "no such file or folder, and not a hub id"),
        (tmp_path / "gone.safetensors", "no such file or folder"),
        ("gone/model.safetensors", "no such file or folder"),
    ]:
        with pytest.raises(SourceError, match=words):
            open_checkpoint(location)
    with pytest.raises(SourceError, match="a revision belongs to a hub id"):
        open_checkpoint(folder, revision="main")
    for name, words in [
        ("tf_model.h5", r"tf_model\.h5 cannot be read"),
        ("adapter_model.safetensors", "an adapter.*merge_and_unload"),
        ("model_index.json", "a pipeline of several models"),
    ]:
        (folder / name).write_bytes(b"{}")
        with pytest.raises(SourceError, match=words):
            open_checkpoint(folder)
        (folder / name).unlink()
    put(folder, "adapter_model.safetensors", "lora_A")
    with pytest.raises(SourceError, match="merge it into its base model"):
        open_checkpoint(folder / "adapter_model.safetensors")
    put(folder, "model.safetensors", "w")
    checkpoint = open_checkpoint(folder)
    assert files(checkpoint) == ["model.safetensors"]
    assert any("adapter_model.safetensors" in note for note in checkpoint.notes)


def test_file_without_tensors(folder: Path) -> None:
    put(folder, "model.safetensors")
    with pytest.raises(SourceError, match="holds no tensors"):
        open_checkpoint(folder)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(folder: Path) -> None:
    put(folder, "model.safetensors", "w").chmod(0)
    with pytest.raises(SourceError, match=r"cannot be read: Permission denied; check"):
        open_checkpoint(folder)


def test_a_link_out_of_the_folder_is_not_copied(folder: Path, tmp_path: Path) -> None:
    """What is copied may be published: a tokenizer.json that is a link to a private key too."""
    put(folder, "model.safetensors", "w")
    secret = tmp_path / "secret"
    secret.write_text("{}")
    (folder / "tokenizer.json").symlink_to(secret)
    with pytest.raises(SourceError, match=r"tokenizer\.json: a link to .*secret, which is outside"):
        open_checkpoint(folder)
