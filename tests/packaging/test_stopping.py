from __future__ import annotations

from pathlib import Path

import pytest
from mlx_lm.utils import load_config, load_tokenizer
from transformers import PreTrainedTokenizerFast

from torch2mlx.packaging.config import output_config, write_config, write_generation_config
from torch2mlx.packaging.stopping import end_of_turn, find_stop_ids
from torch2mlx.packaging.tokenizer import load_tokenizer as load_source

HARMONY = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.role == 'assistant' %}thinking<|end|>"
    "{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}"
    "{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}"
)


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> PreTrainedTokenizerFast:
    loaded: PreTrainedTokenizerFast = load_source(tokenizer_folder)
    return loaded


def test_every_source_counts_and_is_named(tokenizer: PreTrainedTokenizerFast) -> None:
    stop = find_stop_ids(
        {"eos_token_id": 11, "text_config": {"eos_token_id": [11, 12]}},
        {"eos_token_id": [13, 11]},
        tokenizer,
    )
    assert stop.ids == (13, 11, 12, 0, 2)
    assert stop.origins[11] == ("generation_config.json", "config.json", "config.json text_config")
    assert stop.origins[2] == ("chat template's end of turn",)


def test_no_source_no_ids() -> None:
    assert find_stop_ids({"eos_token_id": None}, {}).ids == ()


@pytest.mark.parametrize("bad", ["2", True, -1, 2**31, 1.5, {"a": 1}])
def test_what_is_no_id_is_ignored_with_a_note(bad: object) -> None:
    stop = find_stop_ids({"eos_token_id": [bad, 3]}, {})
    assert stop.ids == (3,)
    assert "is no token id" in stop.notes[0]


def test_ids_of_the_port_are_kept() -> None:
    """mlx-lm drops a port's own ids as soon as a config names one."""
    stop = find_stop_ids({"eos_token_id": 5}, {}, None, "mlx_lm.models.muse_spark")
    assert stop.ids == (5, 200001, 200008)
    assert find_stop_ids({}, {}, None, "mlx_lm.models.llama").ids == ()


def test_the_rendered_turn_decides(tokenizer: PreTrainedTokenizerFast) -> None:
    vocabulary = tokenizer.get_vocab()
    assert end_of_turn(tokenizer) == vocabulary["<|im_end|>"]
    # <|end|> is in this template, and generation must not stop on it.
    tokenizer.chat_template = HARMONY
    assert end_of_turn(tokenizer) == vocabulary["<|return|>"]


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{{ raise_exception('no') }}",
        "{% for",
        "nothing of the conversation",
        "{% for m in messages %}{{ m.content }} and on{% endfor %}",
        "{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}",  # not in the vocabulary
    ],
)
def test_templates_without_an_end_of_turn(
    tokenizer: PreTrainedTokenizerFast, template: str | None
) -> None:
    tokenizer.chat_template = template
    assert end_of_turn(tokenizer) is None


@pytest.mark.parametrize("generation", [{}, {"eos_token_id": 0}, {"eos_token_id": 399}])
def test_mlx_lm_stops_on_all_of_them(source: Path, generation: dict[str, int]) -> None:
    config = load_config(source)
    stop = find_stop_ids(config, generation, load_source(source))
    write_config(source, output_config(config, eos_token_id=stop.ids))
    write_generation_config(source, generation, stop.ids)
    wrapper = load_tokenizer(source, eos_token_ids=load_config(source).get("eos_token_id"))
    assert wrapper.eos_token_ids == set(stop.ids) >= {0, 2, *generation.values()}
