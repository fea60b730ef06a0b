"""Speed, memory and quality of one model, measured in a process that does nothing else.

    python examples/model_run.py torch MODEL.gguf "prompt" 32 "text to score"
    python examples/model_run.py mlx FOLDER "prompt" 32 "text to score"

Prints one line of JSON: the greedy answer to the prompt, tokens a second after the first, peak
resident memory above what importing the libraries took (bytes), and the perplexity of the text.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["measure"]


class Runner(ABC):
    """A loaded model with its tokenizer."""

    tokenizer: Any
    stops: set[int]

    @abstractmethod
    def tokens(self, ids: list[int]) -> Iterator[int]:
        """Greedy continuation, without end."""

    @abstractmethod
    def logits(self, ids: list[int]) -> np.ndarray[Any, Any]:
        """float32 `[tokens, vocabulary]` of a whole sequence."""

    def answer(self, prompt: str) -> Iterator[int]:
        """Tokens of the reply to a user's message, up to the model's own end."""
        messages = [{"role": "user", "content": prompt}]
        text = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        for token in self.tokens(self.tokenizer.encode(text, add_special_tokens=False)):
            if token in self.stops:
                return
            yield token

    def perplexity(self, text: str) -> float:
        """Exp of the mean negative log-likelihood of each token after the first."""
        ids = self.tokenizer.encode(text)
        scores = self.logits(ids)[:-1].astype(np.float64)
        top = scores.max(axis=-1)
        normaliser = top + np.log(np.exp(scores - top[:, None]).sum(axis=-1))
        return math.exp(np.mean(normaliser - scores[np.arange(len(ids) - 1), ids[1:]]))


class TorchRunner(Runner):
    """The original, as transformers runs it in float32."""

    def __init__(self, path: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        gguf: dict[str, Any] = {"gguf_file": path.name} if path.is_file() else {}
        folder = path.parent if gguf else path
        self.tokenizer = AutoTokenizer.from_pretrained(folder, **gguf)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **gguf)
        self.model.eval()
        self.stops = {self.tokenizer.eos_token_id}

    def tokens(self, ids: list[int]) -> Iterator[int]:
        import torch

        step, cache = torch.tensor([ids]), None
        while True:
            with torch.inference_mode():
                out = self.model(step, past_key_values=cache, use_cache=True)
            cache, token = out.past_key_values, int(out.logits[0, -1].argmax())
            yield token
            step = torch.tensor([[token]])

    def logits(self, ids: list[int]) -> np.ndarray[Any, Any]:
        import torch

        with torch.inference_mode():
            return np.asarray(self.model(torch.tensor([ids])).logits[0])


class MLXRunner(Runner):
    """The converted folder, as mlx-lm runs it."""

    def __init__(self, folder: Path) -> None:
        import mlx.core as mx
        from mlx_lm import load

        self.model, self.tokenizer = load(str(folder))[:2]
        if not mx.metal.is_available():
            # On a CPU, MLX multiplies quantized half-precision matrices ten times slower.
            self.model.set_dtype(mx.float32)
        self.stops = set(self.tokenizer.eos_token_ids)

    def tokens(self, ids: list[int]) -> Iterator[int]:
        import mlx.core as mx
        from mlx_lm.generate import generate_step

        for token, _ in generate_step(mx.array(ids), self.model, max_tokens=-1):
            yield int(token)

    def logits(self, ids: list[int]) -> np.ndarray[Any, Any]:
        import mlx.core as mx

        return np.array(self.model(mx.array([ids]))[0].astype(mx.float32))


def peak_memory() -> int:
    """Peak resident bytes of this process.

    On Linux from /proc, because `getrusage` starts a child at its parent's size.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(library: str, model: str, prompt: str, count: int, text: str) -> dict[str, Any]:
    """Load, answer, score; see the module's text for what comes back."""
    # Import first, so that what the libraries take themselves is not counted as the model's.
    if library == "torch":
        import transformers.modeling_gguf_pytorch_utils
        import transformers.models.llama.modeling_llama  # noqa: F401
    else:
        import mlx_lm  # noqa: F401
    imported = peak_memory()
    runner = {"torch": TorchRunner, "mlx": MLXRunner}[library](Path(model))
    stream = runner.answer(prompt)
    produced = [next(stream)]
    start = time.perf_counter()
    produced += islice(stream, count - 1)
    seconds = time.perf_counter() - start
    memory = peak_memory() - imported  # of generating; scoring holds all positions' logits
    return {
        "text": runner.tokenizer.decode(produced),
        "tokens_per_second": (len(produced) - 1) / seconds,
        "memory": memory,
        "perplexity": runner.perplexity(text),
    }


if __name__ == "__main__":
    library, model, prompt, count, text = sys.argv[1:]
    print(json.dumps(measure(library, model, prompt, int(count), text)))
