"""The experts of a layer as the checkpoint holds them and as MLX does."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress

from torch2mlx.architectures.port import load_port
from torch2mlx.errors import Torch2MLXError
from torch2mlx.planning.expressions import Expr, sources_of
from torch2mlx.sources.base import Checkpoint

__all__ = ["draw_moved_experts", "moved_experts"]


_EXPERTS = re.compile(r"\bexperts\b|\b(in|out)put_linear\b")  # the second of Granite


def moved_experts(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The lines of `draw_moved_experts`; () without experts.

    Where no port of mlx-lm takes the tensors, MLX's side is left out: a generated port is known
    only once it is made.
    """
    if not any(_EXPERTS.search(name) for name in checkpoint.state):
        return ()
    outputs: Mapping[str, Expr] = {}
    with suppress(Torch2MLXError):
        outputs = load_port(checkpoint.config).map_state(checkpoint.state).outputs
    return draw_moved_experts(checkpoint.state, outputs)


def draw_moved_experts(state: Mapping[str, Expr], outputs: Mapping[str, Expr]) -> tuple[str, ...]:
    """The first layer with experts as the checkpoint and as MLX hold it, a line a tensor.

    Args:
        state: the checkpoint's tensors.
        outputs: what they become (`PortMapping.outputs`); empty: not known.

    Returns:
        nothing for a model without experts.
    """
    found = next((m for n in state if (m := _EXPERTS.search(n))), None)
    layer = re.match(r"(.*?\.\d+\.)", found.string) if found is not None else None
    if found is None or layer is None:
        return ()
    block = found.string[: found.start()]
    before = {n: e for n, e in state.items() if n.startswith(block)}
    leaves = {id(s) for e in before.values() for s in sources_of(e)}
    after = {n: e for n, e in outputs.items() if any(id(s) in leaves for s in sources_of(e))}
    title = layer[1].rstrip(".")
    drawn = (f"{title} in the checkpoint:", *_drawn(before, layer[1]))
    return (*drawn, f"{title} in MLX:", *_drawn(after, layer[1])) if after else drawn


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
