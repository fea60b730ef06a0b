"""Encoder-decoders from a checkpoint to answers, against transformers' own `generate`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from encoder_decoders import WORDS, add_tokenizer, t5, whisper
from safetensors.torch import load_file, save_file

import torch2mlx
from torch2mlx.errors import SourceError
from torch2mlx.transduction import Transducer, load_transducer, read_sound


class Echo:
    """Says the tokens of its input in turn, then the one that ends."""

    def encode(self, inputs: Any, mask: Any) -> tuple[Any, Any]:
        return [inputs], [inputs]

    def decode(
        self, ids: Any, cross_keys: Any, cross_values: Any, keys: Any, values: Any, mask: Any
    ) -> tuple[Any, Any, Any]:
        seen = keys[0].shape[2]
        said = mx.pad(cross_keys[0], [(0, 0), (0, 1)], constant_values=2)[:, seen]
        logits = (mx.arange(WORDS) == said[:, None])[:, None].astype(mx.float32)
        more = mx.zeros((*keys[0].shape[:2], seen + 1, keys[0].shape[3]))
        return logits, [more], [more]


SETTINGS: dict[str, Any] = {
    "takes": "tokens", "cache": [1, 1, 1], "start": 0, "ends": [2], "suppressed": [9],
    "suppressed_first": [],
}  # fmt: skip


def test_rows_end_by_themselves_and_suppressed_tokens_are_not_said() -> None:
    model = Transducer(Echo(), SETTINGS)
    rows = model.generate(np.array([[5, 6, 7], [5, 2, 8], [9, 7, 2]]), max_tokens=10)
    assert rows == [[5, 6, 7], [5], [0, 7]]


def test_a_language_and_a_task_begin_the_answer() -> None:
    spoken = {"languages": {"de": 20, "en": 21}, "language": None, "tasks": {"translate": 30}}
    more = {**SETTINGS, **spoken, "task": "translate", "no_timestamps": 40}
    model = Transducer(Echo(), more)
    assert model._start("german", None) == model._start("<|de|>", "translate") == [0, 20, 30, 40]
    assert model._start(None, None) is None
    assert Transducer(Echo(), {**more, "language": "en"})._start(None, None) == [0, 21, 30, 40]
    with pytest.raises(torch2mlx.Torch2MLXError, match="knows de, en"):
        model.generate(np.array([[5]]), language="latin")
    with pytest.raises(torch2mlx.Torch2MLXError, match="--task sing"):
        model.generate(np.array([[5]]), task="sing")
    with pytest.raises(torch2mlx.Torch2MLXError, match="no choice of languages"):
        Transducer(Echo(), SETTINGS).generate(np.array([[5]]), language="de")


def test_a_forced_first_token_is_said() -> None:
    model = Transducer(Echo(), {**SETTINGS, "forced_first": 8})
    assert model.generate(np.array([[5, 6, 2]]), max_tokens=5) == [[8, 6]]


def test_beam_search_that_a_checkpoint_asks_for_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: Callable[..., Any]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"generation": SETTINGS}))
    asked = {"num_beams": 4, "no_repeat_ngram_size": 0, "min_length": 56, "max_length": 142}
    (tmp_path / "generation_config.json").write_text(json.dumps(asked))
    add_tokenizer(tmp_path)
    monkeypatch.setattr(
        "torch2mlx.transduction.load_transducer", lambda *_, **__: Transducer(Echo(), SETTINGS)
    )
    done = run_cli("generate", tmp_path, "--prompt", "w5 w6", "--json")
    assert "asks for num_beams 4, min_length 56: not followed" in done.message
    assert "num_beams 4" in json.loads(done.out)["notes"][0]
    (tmp_path / "generation_config.json").write_text(json.dumps({"num_beams": 1}))
    done = run_cli("generate", tmp_path, "--prompt", "w5 w6")
    assert (done.code, "not followed" in done.message) == (0, False)


def test_a_folder_runs_only_with_permission_and_sound_has_the_right_form(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"generation": SETTINGS}))
    with pytest.raises(torch2mlx.Torch2MLXError, match="trust-remote-code"):
        torch2mlx.generate(tmp_path, "hello")
    np.save(tmp_path / "a.npy", np.zeros((8, 40)))
    assert read_sound(tmp_path / "a.npy", tmp_path).shape == (1, 8, 40)
    (tmp_path / "b.wav").write_bytes(b"no sound")
    with pytest.raises(torch2mlx.Torch2MLXError, match=r"b\.wav"):
        read_sound(tmp_path / "b.wav", tmp_path)


@pytest.mark.slow
def test_a_folder_that_lacks_weights_is_told(tmp_path: Path) -> None:
    t5().save_pretrained(tmp_path / "source")
    file = tmp_path / "source" / "model.safetensors"
    weights = load_file(file)
    del weights["decoder.block.0.layer.2.DenseReluDense.wi.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(SourceError, match="1 weights of T5ForConditionalGeneration are missing"):
        torch2mlx.convert(tmp_path / "source", tmp_path / "out")


def test_text_goes_in_and_the_tokens_of_transformers_come_out(tmp_path: Path) -> None:
    model = t5()
    model.save_pretrained(tmp_path / "t5")
    add_tokenizer(tmp_path / "t5")
    made: Any = torch2mlx.convert(tmp_path / "t5", tmp_path / "mlx")
    assert made.error < 1e-5
    torch.manual_seed(1)
    ids = torch.randint(3, WORDS, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    with torch.no_grad():
        expected = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=64, do_sample=False, num_beams=1
        )[:, 1:]
    assert len({*expected.flatten().tolist()}) > 4
    loaded = load_transducer(tmp_path / "mlx", trust_remote_code=True)
    assert loaded.generate(ids.numpy(), mask.numpy(), max_tokens=64) == expected.tolist()
    with pytest.raises(torch2mlx.Torch2MLXError, match="trust-remote-code"):
        torch2mlx.generate(tmp_path / "mlx", "w5 w6")
    answer = torch2mlx.generate(tmp_path / "mlx", "w5 w6", max_tokens=4, trust_remote_code=True)
    assert answer.generated_tokens == 4
    assert answer.notes == ()
    with pytest.raises(torch2mlx.Torch2MLXError, match="takes text"):
        torch2mlx.generate(tmp_path / "mlx", sound="a.npy", trust_remote_code=True)


@pytest.mark.slow
def test_sound_goes_in_and_the_tokens_of_transformers_come_out(tmp_path: Path) -> None:
    model = whisper()
    made: Any = torch2mlx.convert(model, tmp_path / "mlx")
    assert made.error < 1e-5
    features = torch.randn(2, 8, 40)
    with torch.no_grad():
        expected = model.generate(
            input_features=features, max_new_tokens=64, do_sample=False, num_beams=1
        )
    found = load_transducer(tmp_path / "mlx", trust_remote_code=True)
    rows = found.generate(features.numpy(), max_tokens=64)
    assert rows == expected.tolist()  # which leaves the first token out


@pytest.mark.slow
def test_the_language_and_task_of_transformers_give_its_tokens(tmp_path: Path) -> None:
    model = whisper()
    given = model.generation_config
    given.is_multilingual, given.no_timestamps_token_id = True, WORDS - 1
    given.lang_to_id = {"<|de|>": 20, "<|en|>": 21}
    given.task_to_id = {"transcribe": 30, "translate": 31}
    torch2mlx.convert(model, tmp_path / "mlx")
    found = load_transducer(tmp_path / "mlx", trust_remote_code=True)
    features = torch.randn(2, 8, 40)
    for choice in ({"language": "de", "task": "translate"}, {"task": "translate"}):
        with torch.no_grad():
            expected = model.generate(
                input_features=features, max_new_tokens=12, do_sample=False, num_beams=1, **choice
            )
        rows = found.generate(features.numpy(), max_tokens=12, **choice)
        assert rows == expected.tolist()


@pytest.mark.slow
def test_a_half_checkpoint_stays_half(tmp_path: Path) -> None:
    model = t5().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "t5")
    torch2mlx.convert(tmp_path / "t5", tmp_path / "mlx")
    weights: Any = mx.load(str(tmp_path / "mlx" / "model.safetensors"))
    assert {w.dtype for w in weights.values() if mx.issubdtype(w.dtype, mx.floating)} == {
        mx.bfloat16
    }
    loaded = load_transducer(tmp_path / "mlx", trust_remote_code=True)
    assert len(loaded.generate(np.array([[5, 6, 7]]), max_tokens=6)[0]) == 6
