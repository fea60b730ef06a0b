"""Tiny checkpoints as transformers saves them, and the command line, for all tests.

Checkpoints are made once a session and are not to be written to; `copied` gives one that may.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

VOCABULARY = 288  # as many as the tokenizer has

_SHARED: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
    # Not the default of any port, so a converter that loses it is found out.
    "rope_parameters": {"rope_type": "default", "rope_theta": 50_000.0},
}

# name → (model type, options on top of _SHARED)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": False}),
    "llama_short": ("llama", {"tie_word_embeddings": False, "num_hidden_layers": 1}),
    "llama_tied": ("llama", {"tie_word_embeddings": True}),
    "llama_wide": ("llama", {"tie_word_embeddings": False, "intermediate_size": 272}),
    "phi3": ("phi3", {"tie_word_embeddings": False}),
    "gpt_neox": (
        "gpt_neox",  # with the GELU that its port computes
        {"tie_word_embeddings": False, "intermediate_size": 512, "hidden_act": "gelu_new"},
    ),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "qwen3_moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "head_dim": 32},
    ),
    "deepseek_v3": (
        "deepseek_v3",
        {
            "num_key_value_heads": 4, "q_lora_rank": 64, "kv_lora_rank": 64, "v_head_dim": 32,
            "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "n_routed_experts": 4, "n_group": 2,
            "topk_group": 1, "num_experts_per_tok": 2, "n_shared_experts": 1,
            "moe_intermediate_size": 128, "first_k_dense_replace": 1,
        },
    ),
}  # fmt: skip

_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _save_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer with a few merges, special tokens and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the sun rises and the stars go out"] * 9, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", chat_template=_CHATML
    ).save_pretrained(folder)


def build_model(name: str, dtype: str) -> Any:
    """A model of `MODELS` in torch, random but the same in every run."""
    import torch
    import transformers

    model_type, options = MODELS[name]
    config = transformers.models.auto.CONFIG_MAPPING[model_type](**{**_SHARED, **options})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape)
            if parameter.ndim < 2:
                parameter.add_(0.1 * noise)
            else:
                parameter.copy_(1.2 * noise * parameter.shape[-1] ** -0.5)
    return model.to(getattr(torch, dtype))


@dataclass(frozen=True)
class Run:
    """What a command did: exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """stderr as one line: terminals wrap it."""
        return " ".join(self.err.split())


@pytest.fixture(autouse=True, scope="session")
def _quiet_libraries() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A checkpoint by its name in `MODELS`.

    `flat` writes config.json in the style of transformers 4, which mlx-lm's converter reads.
    """
    root = tmp_path_factory.mktemp("checkpoints")

    @cache
    def make(
        name: str, dtype: str = "bfloat16", flat: bool = False, shard_size: str = "5GB"
    ) -> Path:
        from checkpoints import flat_config

        folder = root / f"{name}-{dtype}-{'flat' if flat else 'nested'}-{shard_size}"
        model = build_model(name, dtype)
        model.save_pretrained(folder, max_shard_size=shard_size)
        _save_tokenizer(folder)
        if flat:
            config = flat_config(model)
            assert config is not None
            if name == "qwen3_moe":  # named as the other families name it since version 5
                config["num_experts"] = config.pop("num_local_experts")
            (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.fixture
def copied(checkpoint: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A checkpoint of one's own to damage, as `tmp_path / "source"`."""

    def copy(*arguments: Any, **options: Any) -> Path:
        return Path(shutil.copytree(checkpoint(*arguments, **options), tmp_path / "source"))

    return copy


@pytest.fixture
def run_cli(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Run]:
    """Run `torch2mlx` with arguments, in this process."""

    def run(*arguments: object) -> Run:
        from torch2mlx.cli import main

        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["torch2mlx", *map(str, arguments)])
        code: Any = 0
        try:
            main()
        except SystemExit as stop:
            code = 0 if stop.code is None else stop.code
        captured = capfd.readouterr()
        return Run(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def read_weights() -> Callable[[Path], Mapping[str, tuple[str, list[int], bytes]]]:
    """Every tensor of a folder as (dtype, shape, bytes), by a reader of its own."""

    def read(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
        tensors = {}
        for path in sorted(folder.glob("model*.safetensors")):
            data = path.read_bytes()
            start = 8 + int.from_bytes(data[:8], "little")
            for name, entry in json.loads(data[8:start]).items():
                if name != "__metadata__":
                    begin, end = entry["data_offsets"]
                    part = data[start + begin : start + end]
                    tensors[name] = (entry["dtype"], entry["shape"], part)
        return tensors

    return read
