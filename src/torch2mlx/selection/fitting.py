"""What a model may weigh so that it runs in a named memory: weights, caches and the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch2mlx.architectures.port import Port
from torch2mlx.errors import OptionError
from torch2mlx.planning.shards import parse_size
from torch2mlx.selection.memory import OVERHEAD, cache_bytes, prompt_bytes

__all__ = ["Running", "describe_misfit", "running_memory"]

_DEFAULT_CONTEXT = 8192  # tokens, where neither the user nor the config says less


@dataclass(frozen=True)
class Running:
    """Memory that a running model takes beside its weights.

    Attributes:
        context: tokens of the longest text.
        caches: bytes of the caches at that length; None: this port does not tell.
        prompt: bytes of the largest intermediate results.
        limit: bytes that all may take, or None.
    """

    context: int
    caches: int | None
    prompt: int
    limit: int | None = None

    @property
    def beside(self) -> int:
        """Bytes beside the weights: caches, intermediate results, Python and MLX."""
        return (self.caches or 0) + self.prompt + OVERHEAD

    @property
    def room(self) -> int:
        """Bytes that the weights may take; negative where the rest alone is too much."""
        assert self.limit is not None
        return self.limit - self.beside

    def to_dict(self, weights: int) -> dict[str, Any]:
        """Plain values for the manifest, with the bytes of written weight files."""
        return {
            "limit": self.limit,
            "context": self.context,
            "weights": weights,
            "caches": self.caches,
            "beside": self.beside,
            "total": weights + self.beside,
        }


def running_memory(
    port: Port, *, context: int | None = None, fit: str | int | None = None
) -> Running:
    """Memory of a port beside its weights.

    Args:
        port: of the config.
        context: tokens of the longest text; None: what the config says, at most 8192.
        fit: memory for everything, such as "16GB".

    Raises:
        OptionError: a context below 1, or no size.
    """
    if context is not None and context < 1:
        raise OptionError(f"--context {context}: at least 1 token")
    limit = None if fit is None else parse_size(fit, "--fit")
    tokens = context or min(_DEFAULT_CONTEXT, _longest(port.config))
    return Running(tokens, cache_bytes(port, tokens), prompt_bytes(port.config, tokens), limit)


def describe_misfit(running: Running, port: Port, least: int) -> str:
    """Why nothing fits, and what would.

    Args:
        running: with a limit that is too small.
        port: of the config.
        least: bytes of the smallest weight files that can be made.
    """
    need = least + running.beside
    text = (
        f"nothing fits {_gb(running.limit or 0)}: with the fewest bits the weights take "
        f"{_gb(least)}, caches of {running.context:,} tokens {_gb(running.caches or 0)}, the rest "
        f"{_gb(running.beside - (running.caches or 0))}"
    )
    shorter = _longest_fitting(running, port, least)
    if shorter:
        return f"{text}; --context {shorter} would fit, or --fit {_gb_up(need)}"
    return f"{text}; --fit {_gb_up(need)} would fit"


def _longest_fitting(running: Running, port: Port, least: int) -> int | None:
    """The longest context, in round numbers, that leaves room for the weights."""
    low, high = 0, running.context
    while high - low > max(1, high // 16):
        tokens = (low + high) // 2
        caches = cache_bytes(port, tokens) or 0
        fits = least + caches + prompt_bytes(port.config, tokens) + OVERHEAD <= (running.limit or 0)
        low, high = (tokens, high) if fits else (low, tokens)
    return low or None


def _longest(config: Mapping[str, Any]) -> int:
    value = config.get("max_position_embeddings")
    return value if isinstance(value, int) and value > 0 else _DEFAULT_CONTEXT


def _gb(count: int) -> str:
    return f"{count / 1e9:.3g} GB"


def _gb_up(count: int) -> str:
    """As an option takes it, rounded up."""
    return f"{-(-count // 10**7) / 100:g}GB"
