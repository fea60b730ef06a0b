"""Trains a small Qwen3-MoE on text, so that quantizing experts can be measured on a trained model.

    python benchmarks/train_experts.py OUT --tokenizer FOLDER --text TEXT.txt [--text MORE.txt]

Eight experts a layer, two for each token; the tokenizer is another checkpoint's.  Its vocabulary
is cut to the ids that TEXT needs most, so that the model is about its layers and not its
embedding.  About three minutes on one H100; OUT is a Hugging Face folder in float16.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

_LENGTH, _BATCH = 512, 32


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--text", type=Path, action="append", required=True)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=180, help="stop training after this")
    parser.add_argument("--batch", type=int, default=_BATCH)
    args = parser.parse_args()
    ids = _tokenize(args)
    model = _model(args)
    _train(model, ids, args)
    model.half().save_pretrained(args.out)
    _flatten(args.out)


def _tokenize(args: argparse.Namespace) -> np.ndarray[Any, Any]:
    """Ids of the texts; the tokenizer, with a byte-pair vocabulary of its own, is saved."""
    from transformers import AutoTokenizer

    texts = [path.read_text(encoding="utf-8") for path in args.text]
    pieces = [text[i : i + 20000] for text in texts for i in range(0, len(text), 20000)]
    known = AutoTokenizer.from_pretrained(args.tokenizer)
    tokenizer = known.train_new_from_iterator(pieces, args.vocabulary)
    tokenizer.save_pretrained(args.out)
    args.end = tokenizer.eos_token_id
    args.size = len(tokenizer)
    return np.concatenate([np.array(tokenizer(piece).input_ids) for piece in pieces])


def _model(args: argparse.Namespace) -> Any:
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    heads = max(2, args.width // 64)
    config = Qwen3MoeConfig(
        vocab_size=-(-args.size // 64) * 64, hidden_size=args.width, num_hidden_layers=args.layers,
        intermediate_size=args.width * 2, moe_intermediate_size=args.width,
        num_attention_heads=heads, num_key_value_heads=heads // 2, head_dim=64,
        num_experts=args.experts, num_experts_per_tok=2, norm_topk_prob=True,
        max_position_embeddings=2048, tie_word_embeddings=True, router_aux_loss_coef=0.01,
        output_router_logits=True, bos_token_id=None, eos_token_id=args.end, pad_token_id=None,
    )  # fmt: skip
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Qwen3MoeForCausalLM(config).to(device)


def _train(model: Any, ids: np.ndarray[Any, Any], args: argparse.Namespace) -> None:
    import torch

    device = next(model.parameters()).device
    random = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    begin, total, done = time.monotonic(), args.steps, 0
    tokens = torch.from_numpy(ids)
    while done < total:
        share = max(done / total, (time.monotonic() - begin) / args.seconds)
        if share >= 1:
            break
        rate = min(1.0, (done + 1) / 100) * 0.5 * (1 + math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * max(rate, 0.02)
        starts = random.integers(0, len(tokens) - _LENGTH, args.batch)
        batch = torch.stack([tokens[s : s + _LENGTH] for s in starts]).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        done += 1
        if done % 100 == 0:
            print(f"step {done}: loss {loss.item():.3f}", flush=True)
    print(f"{done} steps, {time.monotonic() - begin:.0f} s, loss {loss.item():.3f}", flush=True)


def _flatten(folder: Path) -> None:
    """config.json in the style of transformers 4, which mlx-lm's converter reads."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    rope = config.pop("rope_parameters", None) or {}
    config["rope_theta"] = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    if "num_local_experts" in config:
        config["num_experts"] = config.pop("num_local_experts")
    config["output_router_logits"] = False
    config["torch_dtype"] = config.pop("dtype", "float16")
    path.write_text(json.dumps(config, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
