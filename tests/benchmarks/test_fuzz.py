"""Damaged checkpoints of every format end in an error of torch2mlx, or are read."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from intake import intake, try_checkpoint
from mutations import FORMATS, format_of, make_seeds, mutate_case, packed
from torch2mlx.selection.plan_file import seal

SEED = 1
CASES = {"safetensors": 20, "index": 20, "config": 20, "torch": 20, "gguf": 20, "tokenizer": 3}
CASES |= {"synthesizer": 6}
OTHERS = 10


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile") / "seeds"
    make_seeds(root)
    return root


WHOLE = ("safetensors", "torch", "gguf", "mlx", "originals/meta", "originals/mistral")


PACKED = (*packed.METHODS, "hqq", "torchao")


@pytest.mark.parametrize("kind", [*WHOLE, *(f"packed/{n}" for n in PACKED)])
def test_undamaged_inputs_are_read(kind: str, seeds: Path) -> None:
    assert intake("packed", seeds / kind) == "read"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("synthesizer", "vits"), ("synthesizer", "fastspeech2")),
        *(("whisper", "whisper"), ("kokoro", "kokoro")),
    ],
)
def test_undamaged_speech_is_read(name: str, kind: str, seeds: Path) -> None:
    assert intake(name, seeds / "speech" / kind) == "read"


@pytest.mark.parametrize("kind", ["adapter", "output", "plan", "recipe"])
def test_undamaged_documents_are_read(kind: str, seeds: Path, tmp_path: Path) -> None:
    base = {"adapter": "base", "plan": "base", "output": "made"}.get(kind, ".")
    source = seeds / ("output" if kind == "output" else "safetensors")
    shutil.copytree(source, tmp_path / base, dirs_exist_ok=True)
    if kind == "adapter":
        shutil.copytree(seeds / "adapters" / "peft", tmp_path, dirs_exist_ok=True)
    elif kind == "plan":
        found = json.loads((seeds / "plan.json").read_text())
        found = seal({**found, "location": str(tmp_path / "base")})
        (tmp_path / "plan.json").write_text(json.dumps(found))
    elif kind == "recipe":
        shutil.copy(seeds / "recipe.toml", tmp_path)
    assert intake(kind, tmp_path) == "read"


@pytest.mark.parametrize("name", FORMATS)
def test_damage_ends_in_an_error_of_ours(name: str, seeds: Path, tmp_path: Path) -> None:
    results = []
    for number in _cases(name):
        folder = tmp_path / str(number)
        mutate_case(number, SEED, seeds, folder)
        results.append(intake(name, folder))  # anything but a Torch2MLXError fails the test
        assert not (folder / "canary").exists()
    assert any(result != "read" for result in results)


def _cases(name: str) -> Iterator[int]:
    numbers = (number for number in itertools.count() if format_of(number) == name)
    return itertools.islice(numbers, CASES.get(name, OTHERS))


# Found by the fuzzer, as (seed, number, format).
FOUND = [
    *((31, 1413, "packed"), (31, 1737, "output"), (41, 435, "original")),
    *((2711, 965, "output"), (2711, 979, "tokenizer"), (2711, 5780, "code")),
    *((2712, 1824, "code"), (2712, 9439, "original"), (2712, 19680, "original")),
]


@pytest.mark.parametrize(("seed", "number", "name"), FOUND)
def test_cases_that_were_found(
    seed: int, number: int, name: str, seeds: Path, tmp_path: Path
) -> None:
    mutate_case(number, seed, seeds, tmp_path / "source", name)
    output = tmp_path / "out" if number % 20 == 19 else None  # as the fuzzer does
    intake(name, tmp_path / "source", output)


# Found by the fuzzer: a value of a kind that some library did not expect.
@pytest.mark.parametrize(
    "change",
    [
        {"torch_dtype": {}},
        {"tie_word_embeddings": [1]},
        {"architectures": [{"a": 1}]},
        {"text_config": []},
        {"num_hidden_layers": 10**30},
        {"rope_scaling": "x", "rope_parameters": [None]},
        {"eos_token_id": {"a": 1}},
        {"model_type": "\ud800"},
        {"head_dim": "\u001b[2J"},
        {"vocab_size": 0.5},
    ],
    ids=lambda change: ",".join(change),
)
def test_values_of_foreign_kinds(change: dict[str, object], seeds: Path, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    for path in (seeds / "safetensors").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    try_checkpoint(folder)


def test_a_case_is_the_same_bytes_each_time(seeds: Path, tmp_path: Path) -> None:
    folder = tmp_path / "case"  # a plan names the folder that it lies in
    for number in random.Random(0).sample(range(1000), 5):
        made = []
        for _ in range(2):
            found = mutate_case(number, 3, seeds, folder)
            files = [p for p in folder.iterdir() if p.is_file() and not p.is_symlink()]
            made.append((found, {path.name: path.read_bytes() for path in files}))
            shutil.rmtree(folder)
        assert made[0] == made[1]
