"""Damaged speech models: folders of VITS and FastSpeech 2, Kokoro's release, OpenAI's Whisper."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from mutations.damage import NUMBERS, copied, damage_file, damage_json, rewrite_json
from mutations.tensors import retensor
from mutations.weights import rewrite_archive

__all__ = ["kokoro", "speech_seeds", "synthesizer", "whisper"]

_TINY = Path(__file__).parents[2] / "tests" / "tiny"
_PARTS = ("bert", "bert_encoder", "predictor", "decoder", "text_encoder")
_DIMS = {
    "n_mels": 8, "n_audio_ctx": 12, "n_audio_state": 8, "n_audio_head": 2, "n_audio_layer": 1,
    "n_vocab": 51864, "n_text_ctx": 16, "n_text_state": 8, "n_text_head": 2, "n_text_layer": 1,
}  # fmt: skip


def speech_seeds(root: Path) -> None:
    """Write a valid folder of each."""
    sys.path.insert(0, str(_TINY))
    try:
        import speech
    finally:
        sys.path.remove(str(_TINY))
    speech.vits(use_stochastic_duration_prediction=False).save_pretrained(root / "speech" / "vits")
    speech.add_vits_tokenizer(root / "speech" / "vits")
    speech.fastspeech2(False).save_pretrained(root / "speech" / "fastspeech2")
    _write_kokoro(root / "speech" / "kokoro")
    _write_whisper(root / "speech" / "whisper")


def _write_kokoro(folder: Path) -> None:
    """What its folder has; of the tensors a few, which `convert` tells when it loads them."""
    import torch

    (folder / "voices").mkdir(parents=True)
    parts: dict[str, dict[str, Any]] = {
        part: {"module.one.weight": torch.ones(2, 3), "module.lstm.weight_ih_l0": torch.ones(8, 2)}
        for part in _PARTS
    }
    parts["decoder"] |= {"module.norm1.norm.weight": torch.ones(3)}
    torch.save(parts, folder / "kokoro.pth")
    torch.save(torch.zeros(4, 1, 256), folder / "voices" / "one.pt")
    config = {"istftnet": {"upsample_rates": [2, 3]}, "plbert": {"hidden_size": 8}, "vocab": {}}
    (folder / "config.json").write_text(json.dumps(config | {"n_token": 40, "style_dim": 128}))
    (folder / "LICENSE").write_text("free")


def _write_whisper(folder: Path) -> None:
    """The file, from transformers' model of the same sizes."""
    import torch

    width = _DIMS["n_audio_state"]
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.conv1.weight": (width, _DIMS["n_mels"], 3),
        "encoder.conv2.weight": (width, width, 3),
        "encoder.positional_embedding": (_DIMS["n_audio_ctx"], width),
        "decoder.positional_embedding": (_DIMS["n_text_ctx"], width),
        "decoder.token_embedding.weight": (_DIMS["n_vocab"], width),
    }
    owners = ["encoder.conv1", "encoder.conv2", "encoder.ln_post", "decoder.ln"]
    for side in ("encoder", "decoder"):
        at = f"{side}.blocks.0"
        for attention in ("attn", "cross_attn")[: 1 + (side == "decoder")]:
            shapes |= {f"{at}.{attention}.{n}.weight": (width, width) for n in _PROJECTIONS}
            owners += [f"{at}.{attention}.{n}" for n in _PROJECTIONS if n != "key"]
            owners.append(f"{at}.{attention}_ln")
        shapes |= {f"{at}.mlp.0.weight": (4 * width, width), f"{at}.mlp.0.bias": (4 * width,)}
        shapes |= {f"{at}.mlp.2.weight": (width, 4 * width)}
        owners += [f"{at}.mlp.2", f"{at}.mlp_ln"]
    shapes |= {f"{owner}.bias": (width,) for owner in owners}
    shapes |= {f"{owner}.weight": (width,) for owner in owners if "ln" in owner}
    torch.manual_seed(0)
    state = {name: torch.randn(shape) for name, shape in shapes.items()}
    folder.mkdir(parents=True)
    torch.save({"dims": _DIMS, "model_state_dict": state}, folder / "tiny.pt")


_PROJECTIONS = ("query", "key", "value", "out")


def synthesizer(rng: random.Random, seeds: Path, folder: Path) -> str:
    """config.json, the weights or the tokenizer of VITS or FastSpeech 2."""
    name = rng.choice(("fastspeech2", "vits"))
    copied(seeds / "speech" / name, folder)
    kind = rng.randrange(5)
    if kind <= 2:
        rewrite_json(rng, folder / "config.json")
    elif kind == 3:
        retensor(rng, folder / "model.safetensors")
    else:
        path = rng.choice(sorted(folder.iterdir()))
        rng.choice((path.unlink, lambda: damage_file(rng, path, 600)))()
    return name


def kokoro(rng: random.Random, seeds: Path, folder: Path) -> str:
    """Any of the release's files."""
    import torch

    copied(seeds / "speech" / "kokoro", folder)
    weights, voice = folder / "kokoro.pth", folder / "voices" / "one.pt"
    kind = rng.randrange(6)
    if kind == 0:
        rewrite_json(rng, folder / "config.json")
    elif kind == 1:
        rewrite_archive(rng, rng.choice((weights, voice)), folder / "canary")
    elif kind == 2:
        damage_file(rng, rng.choice((weights, voice)), 600)
    elif kind == 3:
        torch.save(_changed(rng, torch.load(weights)), weights)
    elif kind == 4:
        torch.save(rng.choice(_voices()), voice)
    else:
        path = rng.choice((weights, voice, folder / "LICENSE", folder / "config.json"))
        path.unlink()
        if rng.random() < 0.5:
            path.symlink_to(rng.choice(("/etc/passwd", "../x.pth", path.name, "/dev/zero")))
    return "kokoro"


def _voices() -> list[Any]:
    """What may be in the place of a voice."""
    import torch

    return [
        torch.zeros(0, 1, 256), torch.zeros(4, 256), torch.zeros(4, 1, 255), [1], {"a": 1},
        torch.full((4, 1, 256), float("nan")), torch.zeros(4, 1, 256, dtype=torch.complex64),
        torch.zeros(4, 1, 256, dtype=torch.bool), torch.zeros(4, 1, 256).to_sparse(), None, 3,
        torch.zeros(1, 1, 1).expand(10**7, 1, 256), torch.empty(4, 1, 256, device="meta"),
    ]  # fmt: skip


def whisper(rng: random.Random, seeds: Path, folder: Path) -> str:
    """Sizes, tensors or the archive of OpenAI's file."""
    import torch

    path = copied(seeds / "speech" / "whisper", folder) / "tiny.pt"
    kind = rng.randrange(5)
    if kind == 0:
        rewrite_archive(rng, path, folder / "canary")
        return "archive"
    if kind == 1:
        damage_file(rng, path, 600)
        return "bytes"
    found = torch.load(path)
    if kind == 2:
        found["model_state_dict"] = _changed(rng, found["model_state_dict"])
    else:
        name = rng.choice(sorted(found["dims"]))
        near = (found["dims"][name] + 1, found["dims"][name] - 1, found["dims"][name] * 2)
        found["dims"][name] = rng.choice((*near, rng.choice(NUMBERS), -1))
        found["dims"] = damage_json(rng, found["dims"]) if rng.random() < 0.3 else found["dims"]
    try:
        torch.save(found, path)
    except RecursionError:  # lists that torch itself cannot write
        torch.save(found | {"dims": []}, path)
    return "dims" if kind > 2 else "tensors"


def _changed(rng: random.Random, state: Any) -> Any:
    """A tree of state dicts of which something was removed, renamed or replaced."""
    import torch

    owner = state
    while any(isinstance(value, dict) for value in owner.values()) and rng.random() < 0.8:
        owner = owner[rng.choice(sorted(owner))]
    for _ in range(rng.choice((1, 1, 2, 5))):
        if not owner:
            break
        name = rng.choice(sorted(owner, key=str))
        value = owner[name]
        kind = rng.randrange(5)
        if kind == 0:
            del owner[name]
        elif kind == 1:
            owner[rng.choice((f"{name}x", 7, ".", "", "\x1b[2J", None))] = owner.pop(name)
        elif kind == 2 or not _dense(value):
            owner[name] = rng.choice((None, 3, [], "x", {}, {"a": torch.ones(1)}, torch.ones(())))
        elif kind == 3:
            other = (value.T, value[:0], value[None], value.reshape(-1), value[..., :1])
            owner[name] = rng.choice(other).clone()
        else:
            kinds = ("float64", "float16", "bfloat16", "int8", "int64", "bool", "complex64")
            cast = value.to(getattr(torch, rng.choice(kinds)))
            owner[name] = rng.choice((cast, value * float("nan"), value * 1e30, value.to_sparse()))
    return state


def _dense(value: Any) -> bool:
    """Whether a value is a tensor that can be cut; what was damaged before may be none."""
    import torch

    return isinstance(value, torch.Tensor) and value.layout is torch.strided and value.ndim > 0
