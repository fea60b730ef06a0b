"""What the documents name: originals, modules, converted models, small files."""

from __future__ import annotations

import json
import re
import shutil
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from encoder_decoders import add_processor, add_tokenizer, t5, whisper
from releases import meta_release, mistral_release, small_sentencepiece
from safetensors.torch import load_file, save_file
from speech import add_vits_tokenizer, vits

import torch2mlx

__all__ = ["furnish"]

Checkpoint = Callable[..., Path]

_NET = """
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(8, 64), torch.nn.Linear(64, 4)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


def build_unet():
    torch.manual_seed(0)
    return Net().eval()
"""
_VAE = """
import torch


class Autoencoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = torch.nn.Linear(8, 2), torch.nn.Linear(2, 8)

    def encode(self, x):
        return self.down(x)

    def decode(self, z):
        return self.up(z)


def build_vae():
    torch.manual_seed(0)
    return Autoencoder().eval()
"""


def _llama(path: Path, checkpoint: Checkpoint) -> None:
    shutil.copytree(checkpoint("llama"), path)


def _converted(path: Path, checkpoint: Checkpoint) -> None:
    torch2mlx.convert(checkpoint("llama"), path, verify=False)


def _quantized(path: Path, checkpoint: Checkpoint) -> None:
    torch2mlx.convert(checkpoint("llama"), path, quantize=True, verify=False)


def _experts_in_turns(path: Path, checkpoint: Checkpoint) -> None:
    """Gate and up of each expert row by row, as no family of transformers has them."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint("mixtral"), dtype=torch.bfloat16)
    shutil.copytree(checkpoint("mixtral"), path)
    model.save_pretrained(path, save_original_format=False)
    tensors = load_file(path / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("gate_up_proj"):
            tensors[name] = torch.stack(tensor.chunk(2, 1), 2).flatten(1, 2).contiguous()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def _opt(path: Path, checkpoint: Checkpoint) -> None:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=288, hidden_size=64, ffn_dim=128, num_hidden_layers=2, num_attention_heads=2,
        word_embed_proj_dim=64, max_position_embeddings=2048, pad_token_id=0, bos_token_id=None,
        eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = OPTForCausalLM(config)
    model.save_pretrained(path)
    for file in checkpoint("llama").glob("*token*"):
        shutil.copy(file, path)


def _llama_release(path: Path, checkpoint: Checkpoint) -> None:
    meta_release(path, load_file(checkpoint("llama") / "model.safetensors"), 2)


def _mistral_release(path: Path, checkpoint: Checkpoint) -> None:
    mistral_release(path, load_file(checkpoint("llama") / "model.safetensors"))
    tokenizer = path.with_name("tokenizer.model.v3")
    small_sentencepiece(tokenizer)  # which leaves a list of words beside it
    tokenizer.rename(path / tokenizer.name)


def _llava(path: Path, checkpoint: Checkpoint) -> None:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    text = {**sizes, "num_attention_heads": 2, "vocab_size": 288, "model_type": "llama"}
    vision = {**sizes, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    ends = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    config = LlavaConfig(
        text_config={**text, **ends, "max_position_embeddings": 64},
        vision_config={**vision, "model_type": "clip_vision_model"},
    )
    torch.manual_seed(0)
    model: Any = LlavaForConditionalGeneration(config)
    model.save_pretrained(path)
    for file in checkpoint("llama").glob("*token*"):
        shutil.copy(file, path)


def _lora(path: Path, checkpoint: Checkpoint) -> None:
    """An adapter as PEFT saves it."""
    path.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    config["base_model_name_or_path"] = str(checkpoint("llama"))
    (path / "adapter_config.json").write_text(json.dumps(config))
    torch.manual_seed(1)
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {
        f"{module}.lora_A.weight": 0.1 * torch.randn(4, 128),
        f"{module}.lora_B.weight": 0.1 * torch.randn(128, 4),
    }
    save_file(tensors, path / "adapter_model.safetensors")


def _text_to_text(path: Path, _: Checkpoint) -> None:
    t5().save_pretrained(path)
    add_tokenizer(path)


def _sound_to_text(path: Path, _: Checkpoint) -> None:
    whisper(50).save_pretrained(path)
    add_tokenizer(path)
    add_processor(path)


def _text_to_speech(path: Path, _: Checkpoint) -> None:
    vits(use_stochastic_duration_prediction=False).save_pretrained(path)
    add_vits_tokenizer(path)


def _speech(path: Path, _: Checkpoint) -> None:
    with wave.open(str(path), "wb") as sound:
        sound.setparams((1, 2, 16_000, 0, "NONE", ""))
        sound.writeframes(bytes(range(256)) * 125)


def _package(path: Path, _: Checkpoint) -> None:
    path.mkdir()
    (path / "models.py").write_text(_NET)


def _program(path: Path, _: Checkpoint) -> None:
    program = torch.export.export(torch.nn.Linear(8, 4), (torch.randn(2, 8),))
    torch.export.save(program, path)


def _text(content: str) -> Callable[[Path, Checkpoint], None]:
    return lambda path, _: path.write_text(content) and None


def _tensors(*shape: int, named: bool = False) -> Callable[[Path, Checkpoint], None]:
    def make(path: Path, _: Checkpoint) -> None:
        value = torch.randn(*shape)
        torch.save({"x": value} if named else (value,), path)

    return make


# name in a document → makes it there
_PLACES: dict[str, Callable[[Path, Checkpoint], None]] = {
    "SRC": _llama,
    "model": _llama,
    "SmolLM2-135M-Instruct": _llama,
    "Meta-Llama-3-70B": _llama,
    "my-experts": _experts_in_turns,
    "llava-1.5-7b-hf": _llava,
    "opt-125m": _opt,
    "Llama-2-70b": _llama_release,
    "Mistral-7B-v0.3": _mistral_release,
    "my-lora": _lora,
    "t5-small": _text_to_text,
    "whisper-tiny": _sound_to_text,
    "mms-tts-eng": _text_to_speech,
    "smol-bf16": _converted,
    "smol-4bit": _quantized,
    "DST": _converted,
    "DST-8bit": _converted,
    "MLX_FOLDER": _quantized,
    "FOLDER": lambda path, _: path.mkdir(),
    "my_package": _package,
    "models.py": _text(_VAE),
    "inputs.pt": _tensors(4, 8, named=True),
    "more.pt": _tensors(16, 8, named=True),
    "image.pt": _tensors(4, 8),
    "latent.pt": _tensors(4, 2),
    "unet.pt2": _program,
    "formats.toml": _text('[modules]\n"*.v_proj" = 6\n'),
    "notes.txt": _text("The sun rises and the stars go out.\n" * 400),
    "speech.wav": _speech,
}


def furnish(folder: Path, text: str, checkpoint: Checkpoint) -> None:
    """Make in a folder what a document names."""
    for name, make in _PLACES.items():
        stem = name.removesuffix(".py")  # of a module, the command names its functions
        if re.search(rf"(?<![\w-]){re.escape(stem)}(?![\w-])", text):
            make(folder / name, checkpoint)
