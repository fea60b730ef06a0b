"""Greedy tokens of tiny random models, converted, beside transformers' `generate`.

    python benchmarks/greedy.py [--only llama t5] [--tokens 64]

Each type has a window of 9 tokens where it has one, a prompt of 12, and so passes it from the first
new token on.  It is converted in float32 with the defaults; the table says through which port.  Its
prompt runs in one piece, then token by token through the caches; a row of PyTorch does the same.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from tiny.configs import tiny_config

TYPES = (
    *("llama", "mistral", "qwen3", "gemma2", "gemma3_text", "gpt_oss", "mixtral", "qwen3_moe"),
    *("deepseek_v3", "jamba", "mamba2", "falcon", "opt", "bloom", "gpt_neo", "t5", "whisper"),
)
_PROMPT = 12


def build(model_type: str) -> Any:
    """A tiny random model, float32, without tokens that end an answer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq

    from torch2mlx.verification.twin import disturb

    kinds: dict[str, Any] = {"t5": AutoModelForSeq2SeqLM, "whisper": AutoModelForSpeechSeq2Seq}
    kind: Any = kinds.get(model_type, AutoModelForCausalLM)
    torch.manual_seed(0)
    config = tiny_config(model_type)
    config.use_cache = True
    model: Any = kind.from_config(config, dtype=torch.float32).eval()
    disturb(model)
    given = model.generation_config
    for name in ("eos_token_id", "max_length", "suppress_tokens", "begin_suppress_tokens"):
        setattr(given, name, None)
    given.pad_token_id = 0
    given.decoder_start_token_id = 1
    return model


def expected_tokens(model: Any, inputs: Any, count: int) -> list[int]:
    """Of transformers."""
    import torch

    with torch.no_grad():
        found = model.generate(inputs, max_new_tokens=count, do_sample=False, num_beams=1)
    return [int(t) for t in found[0, -count:]]


def decoder_tokens(folder: Path, ids: Any, count: int) -> list[int]:
    """Of a port in mlx-lm, with its own caches."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    model = load_model(folder, trust_remote_code=True)[0]
    cache, tokens = make_prompt_cache(model), mx.array(ids.numpy())
    found: list[int] = []
    for _ in range(count):
        chosen: Any = mx.argmax(model(tokens, cache=cache)[:, -1], axis=-1).item()
        found.append(int(chosen))
        tokens = mx.array([[found[-1]]])
    return found


def trial(model_type: str, count: int) -> tuple[str, int, int]:
    """The route, how many tokens agree from the first on, and how many are different ones."""
    import torch

    import torch2mlx
    from torch2mlx.transduction import load_transducer

    model = build(model_type)
    generator = torch.Generator().manual_seed(1)
    if model_type == "whisper":
        shape = (1, model.config.num_mel_bins, 2 * model.config.max_source_positions)
        inputs = torch.randn(shape, generator=generator)
    else:
        vocabulary = model.config.vocab_size
        inputs = torch.randint(5, vocabulary, (1, _PROMPT), generator=generator)
    expected = expected_tokens(model, inputs, count)
    with tempfile.TemporaryDirectory() as scratch:
        source, out = Path(scratch) / "source", Path(scratch) / "mlx"
        model.save_pretrained(source)
        if model.config.is_encoder_decoder:
            torch2mlx.convert(source, out)
            transducer = load_transducer(out, trust_remote_code=True)
            route = "encode and decode"
            found = transducer.generate(inputs.numpy(), start=[1], max_tokens=count)[0]
        else:
            torch2mlx.convert(source, out, dtype="float32")
            route = "generated port" if (out / "model.py").exists() else "mlx-lm's port"
            found = decoder_tokens(out, inputs, count)
    same = np.array(found) == np.array(expected)
    return route, count if same.all() else int(same.argmin()), len({*expected})


def main() -> int:
    """Print the table; 1 if a token differs."""
    from transformers.utils import logging

    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", nargs="+", default=TYPES)
    parser.add_argument("--tokens", type=int, default=64)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    print("| type | route | equal tokens | different ones | seconds |\n|---|---|---|---|---|")
    failed = False
    for name in given.only:
        started = time.perf_counter()
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                route, same, kinds = trial(name, given.tokens)
            row = f"{route} | {same} of {given.tokens} | {kinds}"
            failed |= same < given.tokens
        except Exception as error:  # a row says so, the others follow
            row, failed = f"{type(error).__name__}: {' '.join(str(error).split())[:200]} | | ", True
        print(f"| {name} | {row} | {time.perf_counter() - started:.0f} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
