"""Generated ports beside mlx-lm's own, in one run: prompts and single tokens through the cache.

    python benchmarks/decoders.py [--full] [--repeats 15] [--only llama mixtral]
                                  [--dtype bfloat16] [--bits 4]

Both models have the same random weights and run in turns; the ratio is the median over pairs of
neighbouring runs, so a busy machine slows both.  The run stops if their logits differ: in float32,
to which both are cast for it, as in bfloat16 a token whose experts nearly tie goes to another one
in either of them.  `--full` takes the shape of Llama-3.2-1B, and a Mixtral of that width.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from torch2mlx.architectures.port import MODEL_FILE, load_port

TOLERANCE = 1e-4
"""Relative L2 of the logits of all positions in float32."""


def config_of(name: str, full: bool) -> dict[str, Any]:
    """config.json of a case."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    dims, hidden, layers, heads, groups, vocabulary = (
        (2048, 8192, 16, 32, 8, 128256) if full else (256, 704, 4, 8, 4, 2000)
    )
    values: dict[str, Any] = {
        "hidden_size": dims,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": vocabulary,
    }
    if name == "mixtral":
        values |= {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None}
    return {**CONFIG_MAPPING[name](**values).to_dict(), "model_type": name}


def models(
    name: str, full: bool, dtype: str = "float32", bits: int | None = None
) -> tuple[Any, Any]:
    """The generated model and mlx-lm's, with equal weights, quantized in groups of 64 or not."""
    config = config_of(name, full)
    ours = load_port({**config, "model_file": MODEL_FILE})
    by_hand = load_port(config).build()
    generated = ours.build()
    if dtype != "float32":  # before anything is computed: no float32 copy is ever whole
        by_hand.set_dtype(getattr(mx, dtype))
        mx.eval(by_hand.parameters())
    parameters: Any = tree_flatten(by_hand.parameters())
    given = dict(parameters)
    scaled: Any = tree_flatten(generated.parameters())
    made: dict[str, mx.array] = {}
    for key, array in scaled:
        moe = key.replace(".mlp.", ".block_sparse_moe.").replace(".experts.", ".switch_mlp.")
        source = given.get(key, given.get(moe))
        if source is None and "gate_up_proj" in key:
            parts = [moe.replace("gate_up_proj", part) for part in ("gate_proj", "up_proj")]
            source = mx.concatenate([given[part] for part in parts], axis=1)
        if source is None and key.endswith("inv_freq"):
            width = 2 * array.shape[0]
            base = config["rope_parameters"]["rope_theta"]
            source = 1 / base ** (mx.arange(0, width, 2) / width)
        if source is None:
            raise SystemExit(f"{name}: nothing gives {key}")
        made[key] = source
    generated.load_weights(list(made.items()), strict=True)
    if bits is not None:
        for model in (generated, by_hand):
            nn.quantize(model, group_size=64, bits=bits, class_predicate=_quantized)
    mx.eval(generated.parameters(), by_hand.parameters())
    return generated, by_hand


def _quantized(path: str, module: Any) -> bool:
    """All but routers, which the generated port does not hold in a layer that can be quantized."""
    return hasattr(module, "to_quantized") and not path.endswith(("gate", "router"))


def _distance(pair: tuple[Any, Any], prompt: mx.array) -> float:
    """Relative L2 of the logits, both models in float32; their dtype is what it was afterwards."""
    from mlx_lm.models.cache import make_prompt_cache

    logits = []
    for model in pair:
        before = model.parameters()
        model.set_dtype(mx.float32)
        logits.append(model(prompt, cache=make_prompt_cache(model)))
        mx.eval(logits[-1])
        model.update(before)
    ours, theirs = logits
    return float(mx.linalg.norm(ours - theirs) / mx.linalg.norm(theirs))


def compare(
    name: str,
    full: bool,
    repeats: int,
    length: int,
    dtype: str = "float32",
    bits: int | None = None,
) -> list[dict[str, Any]]:
    """Milliseconds and their ratio in both phases.

    Raises:
        SystemExit: the two compute different things.
    """
    from mlx_lm.models.cache import make_prompt_cache

    pair = models(name, full, dtype, bits)
    mx.random.seed(0)
    prompt = mx.random.randint(0, 2000, (1, length))
    token = mx.array([[7]])
    error = _distance(pair, prompt)
    if not error < TOLERANCE:
        raise SystemExit(f"{name}: the two differ by {error:.1e} in float32")
    rows = []
    for phase in ("prefill", "decode"):
        times: list[tuple[float, float]] = []
        for turn in range(repeats + 2):
            found = [0.0, 0.0]
            for which in (0, 1) if turn % 2 else (1, 0):
                model = pair[which]
                cache = make_prompt_cache(model)
                if phase == "decode":
                    mx.eval(model(prompt, cache=cache))
                start = time.perf_counter()
                for _ in range(8 if phase == "decode" else 1):
                    mx.eval(model(token if phase == "decode" else prompt, cache=cache))
                found[which] = time.perf_counter() - start
            times.append((found[0], found[1]))
        a, b = (1e3 * statistics.median(t[i] for t in times[2:]) for i in (0, 1))
        rows.append(
            {
                "model": name,
                "weights": dtype if bits is None else f"{bits}-bit",
                "phase": phase,
                "generated_ms": a,
                "by_hand_ms": b,
                "ratio": statistics.median(t[0] / t[1] for t in times[2:]),
                "distance": error,
            }
        )
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--full", action="store_true", help="the shape of a real model")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--length", type=int, default=64, help="tokens of the prompt")
    parser.add_argument("--only", nargs="+", default=["llama", "mixtral"])
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="float32")
    parser.add_argument("--bits", type=int, help="quantize both")
    given = parser.parse_args()
    print("| model | weights | phase | generated ms | mlx-lm ms | ratio | distance |")
    print("|---|---|---|---|---|---|---|")
    for name in given.only:
        for row in compare(name, given.full, given.repeats, given.length, given.dtype, given.bits):
            print(
                f"| {name} | {row['weights']} | {row['phase']} | {row['generated_ms']:.1f} "
                f"| {row['by_hand_ms']:.1f} | {row['ratio']:.2f} | {row['distance']:.0e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
