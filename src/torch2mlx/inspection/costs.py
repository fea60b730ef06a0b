"""What memory, quantization, architecture and tokenizer take for this checkpoint."""

from __future__ import annotations

from torch2mlx.architectures.catalog import runs_sharded
from torch2mlx.architectures.limits import stated_limits
from torch2mlx.inspection.words import has_template, has_tokenizer
from torch2mlx.selection.machines import smallest_mac
from torch2mlx.sources.base import Checkpoint

__all__ = ["describe_costs", "odd_widths"]

_GROUP = 64
_BITS = 4.5  # a weight of 4 bits with its share of a scale and a bias in 16 bits, groups of 64


def describe_costs(
    checkpoint: Checkpoint, port: str | None, program: str | None = None
) -> dict[str, str]:
    """A sentence for each of the four, from headers and config; `program` as in `Inspection`."""
    state = checkpoint.state
    weights = sum(expr.size for expr in state.values())
    largest = max(state.values(), key=lambda expr: expr.size, default=None)
    plain, packed = 2 * weights, _quantized_bytes(checkpoint)
    memory = (
        f"{plain / 1e9:.3g} GB of weights in 16 bits ({_mac(plain)}), {2 * plain / 1e9:.3g} GB in "
        "PyTorch's float32; the conversion stays below its --memory-limit"
    )
    if largest is not None:
        memory += f", the largest tensor has {largest.nbytes / 1e9:.3g} GB"
    able = sum(e.size for e in state.values() if len(e.shape) >= 2 and not e.shape[-1] % _GROUP)
    quantization = (
        f"{100 * able / max(1, weights):.3g} % of the weights take groups of {_GROUP}; about "
        f"{packed / 1e9:.3g} GB at 4 bits ({_mac(packed)}), see torch2mlx plan"
    )
    odd = odd_widths(checkpoint, _GROUP)
    if odd:
        quantization += f"; {sum(odd.values())} tensors do not take them"
    return {
        "memory": memory,
        "quantization": quantization,
        "architecture": (
            f"none: {program} needs no port of mlx-lm"
            if program is not None
            else _architecture(checkpoint, port)
        ),
        "tokenizer": _tokenizer(checkpoint),
    }


def odd_widths(checkpoint: Checkpoint, group: int) -> dict[int, int]:
    """Widths of matrices that a group size does not divide, each with the number of tensors."""
    found: dict[int, int] = {}
    for expr in checkpoint.state.values():
        if len(expr.shape) >= 2 and expr.shape[-1] % group and expr.shape[-1] > 32:
            found[expr.shape[-1]] = found.get(expr.shape[-1], 0) + 1
    return found


def _quantized_bytes(checkpoint: Checkpoint) -> int:
    total = 0.0
    for expr in checkpoint.state.values():
        takes = len(expr.shape) >= 2 and not expr.shape[-1] % _GROUP
        total += expr.size * (_BITS if takes else 16) / 8
    return int(total)


def _mac(weights: int) -> str:
    memory = smallest_mac(weights)
    return "more than any one Mac" if memory is None else f"weights alone: a Mac of {memory} GB"


def _architecture(checkpoint: Checkpoint, port: str | None) -> str:
    if port is None:
        return "no port in mlx-lm: torch2mlx generates one, or says why it cannot"
    limits = len(stated_limits(checkpoint.config))
    known = f"{limits} known differences from PyTorch, below" if limits else "no known difference"
    several = "; runs on several Macs" if runs_sharded(port) else "; runs on one Mac only"
    return f"mlx-lm's port {port}: {known}; compared with PyTorch before it is used{several}"


def _tokenizer(checkpoint: Checkpoint) -> str:
    if not has_tokenizer(checkpoint):
        return "none: no text in or out"
    template = "with" if has_template(checkpoint) else "without"
    return f"copied byte for byte, {template} a chat template; both sides encode the same texts"
