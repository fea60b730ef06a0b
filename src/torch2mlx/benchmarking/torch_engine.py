"""Language models and modules in PyTorch, eager or compiled."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["TorchDevice", "compiled_stream", "eager_stream"]


class TorchDevice:
    """A device of PyTorch's: "cpu", "cuda" or "mps".

    Raises:
        ValueError: it is not there.
    """

    def __init__(self, name: str) -> None:
        import torch

        present = {
            "cpu": True,
            "cuda": torch.cuda.is_available(),
            "mps": torch.backends.mps.is_available(),
        }
        if not present.get(name):
            raise ValueError(f"this PyTorch ({torch.__version__}) sees no device {name!r}")
        self.name = name

    @property
    def machine(self) -> str:
        """What the device calls itself."""
        import torch

        from torch2mlx.benchmarking.machine import processor_name

        if self.name == "cuda":
            return str(torch.cuda.get_device_name())
        return processor_name()

    def wait(self) -> None:
        """Return when everything that was begun is done."""
        import torch

        if self.name == "cuda":
            torch.cuda.synchronize()
        elif self.name == "mps":
            torch.mps.synchronize()

    def peak_bytes(self) -> int | None:
        """Bytes that the allocator held at most; None: look at the process."""
        import torch

        if self.name == "cuda":
            return int(torch.cuda.max_memory_allocated())
        if self.name == "mps":  # no peak is kept; the pool of the driver does not shrink
            return int(torch.mps.driver_allocated_memory())
        return None


def eager_stream(model: Any, device: str) -> Any:
    """Greedy tokens of a transformers model with its growing cache (`timing.Stream`)."""
    import torch

    last = _last_logits(model)

    def stream(ids: Sequence[int], tokens: int) -> Iterator[int]:
        step, cache = torch.tensor([list(ids)], device=device), None
        for _ in range(tokens):
            with torch.inference_mode():
                out = model(step, past_key_values=cache, use_cache=True, **last)
                cache, step = out.past_key_values, out.logits[:, -1:].argmax(-1)
            yield int(step)

    return stream


def compiled_stream(model: Any, device: str, longest: int) -> Any:
    """Greedy tokens through `torch.compile`: single tokens over a cache of fixed size.

    Prompts run eagerly, as transformers' own `generate` does it.

    Args:
        model: of transformers; all its layers must have a fixed cache.
        device: where it is.
        longest: tokens of prompt and answer together.
    """
    import torch
    from transformers import StaticCache

    last = _last_logits(model)
    cache: Any = StaticCache(config=model.config, max_cache_len=longest)

    def step(token: Any, position: Any) -> Any:
        out = model(token, past_key_values=cache, position_ids=position, use_cache=True, **last)
        return out.logits[:, -1:].argmax(-1)

    mode = "reduce-overhead" if device == "cuda" else "default"
    compiled = torch.compile(step, mode=mode, dynamic=False)

    def stream(ids: Sequence[int], tokens: int) -> Iterator[int]:
        with torch.no_grad():  # an inference tensor in the cache would forbid its compiled update
            cache.reset()
            prompt = torch.tensor([list(ids)], device=device)
            token = step(prompt, torch.arange(len(ids), device=device)[None])
            yield int(token)
            for place in range(len(ids), len(ids) + tokens - 1):
                position = torch.tensor([[place]], device=device)
                token = compiled(token.clone(), position)
                yield int(token)

    return stream


def _last_logits(model: Any) -> dict[str, Any]:
    """Arguments that keep the head to the last position, as `generate` does."""
    parameters = inspect.signature(type(model).forward).parameters
    return {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
