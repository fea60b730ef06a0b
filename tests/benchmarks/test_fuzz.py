"""Damaged checkpoints of every format end in an error of torch2mlx, or are read."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from fuzz import try_checkpoint
from mutations import FORMATS, make_seeds, mutate_case

SEED = 1
CASES = 20  # a format


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile") / "seeds"
    make_seeds(root)
    return root


@pytest.mark.parametrize("kind", ["safetensors", "torch", "gguf", "mlx"])
def test_undamaged_inputs_are_read(kind: str, seeds: Path) -> None:
    assert try_checkpoint(seeds / kind) == "read"


@pytest.mark.parametrize("offset", range(len(FORMATS)), ids=list(FORMATS))
def test_damage_ends_in_an_error_of_ours(offset: int, seeds: Path, tmp_path: Path) -> None:
    results = []
    for number in range(offset, CASES * len(FORMATS), len(FORMATS)):
        folder = tmp_path / str(number)
        mutate_case(number, SEED, seeds, folder)
        results.append(try_checkpoint(folder))  # anything but a Torch2MLXError fails the test
        assert not (folder / "canary").exists()
    assert len(results) == CASES
    assert any(result != "read" for result in results)


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
    for number in random.Random(0).sample(range(1000), 5):
        first, second = tmp_path / f"{number}a", tmp_path / f"{number}b"
        assert mutate_case(number, 3, seeds, first) == mutate_case(number, 3, seeds, second)
        for path in first.iterdir():
            if path.is_file() and not path.is_symlink():
                assert path.read_bytes() == (second / path.name).read_bytes()
