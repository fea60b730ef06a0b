"""The experts of a layer as the checkpoint holds them and as MLX does."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch2mlx.architectures.port import load_port
from torch2mlx.errors import Torch2MLXError
from torch2mlx.planning.expressions import Expr, sources_of
from torch2mlx.sources.base import Checkpoint

__all__ = ["draw_moved_experts", "moved_experts"]


def moved_experts(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The lines of `draw_moved_experts`; () without experts, or where no port takes the tensors."""
    if not any(re.search(r"experts\b", name) for name in checkpoint.state):
        return ()
    try:
        outputs = load_port(checkpoint.config).map_state(checkpoint.state).outputs
    except Torch2MLXError:
        return ()
    return draw_moved_experts(checkpoint.state, outputs)


def draw_moved_experts(state: Mapping[str, Expr], outputs: Mapping[str, Expr]) -> tuple[str, ...]:
    """The first layer with experts as the checkpoint and as MLX hold it, a line a tensor.

    Args:
        state: the checkpoint's tensors.
        outputs: what they become (`PortMapping.outputs`).

    Returns:
        nothing for a model without experts.
    """
    first = next((n for n in state if re.search(r"experts\b", n)), None)
    layer = re.match(r"(.*?\.\d+\.)", first or "")
    if first is None or layer is None:
        return ()
    block = first[: re.search(r"experts\b", first).start()]  # type: ignore[union-attr]
    before = {n: e for n, e in state.items() if n.startswith(block)}
    leaves = {id(s) for e in before.values() for s in sources_of(e)}
    after = {n: e for n, e in outputs.items() if any(id(s) in leaves for s in sources_of(e))}
    title = layer[1].rstrip(".")
    return (
        f"{title} in the checkpoint:",
        *_drawn(before, layer[1]),
        f"{title} in MLX:",
        *_drawn(after, layer[1]),
    )


def _drawn(tensors: Mapping[str, Expr], prefix: str) -> Iterable[str]:
    groups: dict[tuple[str, tuple[int, ...], str], list[int]] = {}
    for name, expr in tensors.items():
        short = name.removeprefix(prefix)
        number = re.search(r"(?<=experts\.)\d+", short)
        key = short if number is None else f"{short[: number.start()]}*{short[number.end() :]}"
        groups.setdefault((key, expr.shape, expr.dtype.name), []).append(
            -1 if number is None else int(number[0])
        )
    for (key, shape, dtype), numbers in groups.items():
        many = "" if numbers == [-1] else f"{len(numbers)} × "
        shown = key.replace("*", f"{min(numbers)}-{max(numbers)}")
        yield f"  {shown}  {many}{list(shape)} {dtype}"
