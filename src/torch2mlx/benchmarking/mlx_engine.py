"""Language models in MLX, as mlx-lm generates with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["machine_name", "mlx_stream", "peak_bytes"]


def mlx_stream(model: Any) -> Any:
    """Greedy tokens of a model of mlx-lm's kind (`timing.Stream`), by mlx-lm's own loop."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    def stream(ids: Sequence[int], tokens: int) -> Iterator[int]:
        for token, _ in generate_step(mx.array(list(ids)), model, max_tokens=tokens):
            yield int(token)

    return stream


def peak_bytes() -> int | None:
    """Bytes that MLX held at most on a GPU; None: look at the process."""
    import mlx.core as mx

    return None if mx.default_device() == mx.cpu else int(mx.get_peak_memory())


def machine_name() -> str:
    """What MLX's default device calls itself."""
    import mlx.core as mx

    from torch2mlx.benchmarking.machine import processor_name

    if mx.default_device() == mx.cpu:
        return processor_name()
    return str(mx.device_info().get("device_name", "GPU"))
