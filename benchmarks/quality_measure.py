"""How a written MLX folder predicts text, beside its original; one JSON object on stdout.

    python benchmarks/quality_measure.py MODEL FOLDER --test TEXT.txt [--test ANOTHER.txt]

The folder's weights are dequantized by `mx.dequantize` and run in PyTorch in float32, on the GPU
where there is one.  With --mlx, the folder also runs in MLX on the CPU, in float32, and the
relative L2 difference of its logits from PyTorch's is told.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

_PROMPT = 48  # tokens of a text's beginning, for models without a chat template
_SUBJECTS = (
    "a volcano|the moon|a bicycle|bread|a library|the sea|a computer|music|a chess game|the heart|"
    "a garden|glass|a train|the weather|a novel|salt|a bridge|coffee|a clock|the desert|a painting|"
    "paper|a lighthouse|cheese|a river|the alphabet|a telescope|bees|a market|iron|a dream|rain|"
    "a violin|the brain|a map|soap|a castle|the wind|a camera|rice|an island|mathematics|a spider|"
    "steel|a theatre|the stars|a potato|silk|a hospital|gravity|a forest|wine|an airplane|memory|"
    "a mirror|ice|a school|money|a horse|electricity|a poem|the skin|a ship|honey|a battery|"
    "history|a mountain|paint|a robot|the eye|a cat|cement|a language|light"
).split("|")
_QUESTIONS = (
    "Explain to a child how {} works or comes about.", "Write a short story about {}.",
    "List five facts about {}, each with a reason.", "Why do people care about {}?",
)  # fmt: skip
_BATCH = 32  # prompts at a time
_COMPARED = 32  # tokens whose logits are compared with MLX's
_EMBEDDING = "model.embed_tokens."

Array = np.ndarray[Any, Any]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path, help="MODEL itself: only its loops are counted")
    parser.add_argument("--test", type=Path, action="append", required=True)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--generate", type=int, default=112)
    parser.add_argument("--embedding", type=Path, help="folder that the embedding is taken from")
    parser.add_argument("--mlx", action="store_true")
    args = parser.parse_args()
    print(json.dumps(_measure(args)))


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from torch2mlx.packaging.index import measure_weights
    from torch2mlx.verification.quality import measure_quality, tail_loop_rate

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    reference = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    reference = reference.eval().to(device)
    texts = {path.stem: path.read_text(encoding="utf-8") for path in args.test}
    samples = {
        name: windows(tokenizer, text, args.windows, args.length) for name, text in texts.items()
    }
    first = next(iter(texts))
    prompts = _prompts(tokenizer, texts[first], args.prompts)
    if args.folder == args.model:
        return {"loops": tail_loop_rate(continuations(reference, prompts, args.generate))}
    tensors = dequantized(args.folder)
    if args.embedding is not None:
        given = dequantized(args.embedding)
        tensors.update({k: v for k, v in given.items() if k.startswith(_EMBEDDING)})
    quantized = copy.deepcopy(reference)
    take_weights(quantized, tensors)
    result: dict[str, Any] = {
        "bits_per_weight": measure_weights(args.folder).bits_per_weight,
        "device": device.type,
        "texts": {
            name: _figures(measure_quality(reference, quantized, found))
            for name, found in samples.items()
        },
    }
    if args.prompts and args.embedding is None:
        result["loops"] = tail_loop_rate(continuations(quantized, prompts, args.generate))
        result["prompts"] = len(prompts)
    if args.mlx and args.embedding is None:
        result["mlx_difference"] = mlx_difference(args.folder, quantized.cpu(), samples[first][0])
    return result


def _figures(quality: Any) -> dict[str, Any]:
    """The figures of a `Quality`, without those of each token."""
    return {name: value for name, value in asdict(quality).items() if name != "divergences"}


def windows(tokenizer: Any, text: str, count: int, length: int) -> list[Array]:
    """Windows of token ids [length], evenly spaced over the text's characters."""
    step = max(1, len(text) // max(1, count))
    pieces = (text[i * step : i * step + 8 * length] for i in range(count))
    found = [np.array(tokenizer(piece).input_ids[:length]) for piece in pieces]
    return [window for window in found if len(window) == length]


def _prompts(tokenizer: Any, text: str, count: int) -> list[Array]:
    """Questions in the tokenizer's chat template; beginnings of a text where it has none."""
    if not getattr(tokenizer, "chat_template", None):
        return windows(tokenizer, text, count, _PROMPT)
    asked = [question.format(subject) for subject in _SUBJECTS for question in _QUESTIONS]
    chats = [[{"role": "user", "content": content}] for content in asked[:count]]
    texts = [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        for chat in chats
    ]
    return [np.array(tokenizer(text, add_special_tokens=False).input_ids) for text in texts]


def continuations(model: Any, prompts: list[Array], count: int) -> list[list[int]]:
    """Greedy texts of at most `count` tokens, without their prompts."""
    import torch

    ends = model.generation_config.eos_token_id
    stops = set(ends if isinstance(ends, list) else [ends])
    pad = next((s for s in stops if s is not None), 0)
    found = []
    for start in range(0, len(prompts), _BATCH):
        batch = prompts[start : start + _BATCH]
        longest = max(len(prompt) for prompt in batch)
        ids = torch.tensor([[pad] * (longest - len(p)) + p.tolist() for p in batch])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in batch])
        written = model.generate(
            ids.to(model.device), attention_mask=mask.to(model.device), do_sample=False,
            max_new_tokens=count, pad_token_id=pad,
        )  # fmt: skip
        for line in written[:, ids.shape[1] :].tolist():
            end = next((i for i, token in enumerate(line) if token in stops), len(line))
            found.append(line[:end])
    return found


def dequantized(folder: Path) -> dict[str, Any]:
    """The tensors of an MLX folder by PyTorch's names, quantized ones by what they stand for."""
    import mlx.core as mx

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    formats = config.get("quantization", {})
    stored: dict[str, Any] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        stored.update(mx.load(str(path)))
    found = {}
    with mx.stream(mx.cpu):
        for name, value in stored.items():
            module, _, leaf = name.rpartition(".")
            if leaf in ("scales", "biases"):
                continue
            if leaf == "weight" and f"{module}.scales" in stored:
                form = formats.get(module, formats)
                mode = form.get("mode", "affine")
                parts = [stored.get(f"{module}.{leaf}") for leaf in ("scales", "biases")]
                if mode == "affine":  # in the scales' own type the products would be rounded
                    parts = [part.astype(mx.float32) for part in parts]
                value = mx.dequantize(
                    value, *parts, group_size=form["group_size"], bits=form["bits"], mode=mode
                )
            found[name] = np.array(value.astype(mx.float32))
    return _joined_experts(found)


def _joined_experts(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """mlx-lm keeps the gate and up matrices of experts apart, transformers joins them."""
    found = dict(tensors)
    for name in tensors:
        if match := re.fullmatch(r"(.*)\.switch_mlp\.gate_proj\.weight", name):
            mlp = match[1]
            gate, up, down = (
                found.pop(f"{mlp}.switch_mlp.{part}_proj.weight") for part in ("gate", "up", "down")
            )
            found[f"{mlp}.experts.gate_up_proj"] = np.concatenate([gate, up], axis=1)
            found[f"{mlp}.experts.down_proj"] = down
    return found


def take_weights(model: Any, tensors: Mapping[str, Array]) -> None:
    """Give a PyTorch model the values of `dequantized`."""
    import torch

    state = model.state_dict()
    for name, value in tensors.items():
        state[name].copy_(torch.from_numpy(value))
    model.tie_weights()


def mlx_difference(folder: Path, model: Any, ids: Array) -> float:
    """Relative L2 difference between the logits of a folder in MLX and of its values in PyTorch."""
    import torch
    from mlx_lm.utils import load_model

    from torch2mlx.verification.candidate import run_candidate, to_float32

    ids = ids[:_COMPARED]
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0]
    found = run_candidate(to_float32(load_model(folder, lazy=True)[0]), ids).logits
    gap = np.asarray(found, np.float64) - expected.double().numpy()
    return float(np.linalg.norm(gap) / np.linalg.norm(expected.double().numpy()))


if __name__ == "__main__":
    main()
