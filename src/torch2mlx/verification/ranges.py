"""How large activations become, by module: whether float16 holds them.

Some families (Gemma) have activations beyond 65,504, where float16 ends, though their weights are
small; the result is then infinite or NaN on the GPU while every weight is right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from torch2mlx.errors import NumericError
from torch2mlx.planning.plan import Output, is_token_embedding
from torch2mlx.progress import Progress
from torch2mlx.quantization.targets import matches
from torch2mlx.sources.base import Checkpoint
from torch2mlx.verification.reference import Trace, run_reference

if TYPE_CHECKING:
    import torch

__all__ = [
    "FLOAT16_MAX",
    "Ranges",
    "choose_precision",
    "measure_ranges",
    "precision_of_ranges",
    "recorded_ranges",
    "require_float16",
]

Array = np.ndarray[Any, Any]

FLOAT16_MAX = 65504.0

_MARGIN = 4.0  # other texts reach further than the one that is measured on


@contextmanager
def recorded_ranges(model: torch.nn.Module) -> Iterator[dict[str, tuple[float, float]]]:
    """Largest magnitudes that enter and leave each module while the model runs, by path."""
    import torch

    found: dict[str, tuple[float, float]] = {}

    def largest(values: Any) -> float:
        if torch.is_tensor(values):
            return float(values.abs().max()) if values.is_floating_point() and values.numel() else 0
        if isinstance(values, tuple | list):
            return max((largest(v) for v in values), default=0.0)
        return 0.0

    def hook(path: str) -> Any:
        def note(_module: Any, args: Any, output: Any) -> None:
            before = found.get(path, (0.0, 0.0))
            found[path] = (max(before[0], largest(args)), max(before[1], largest(output)))

        return note

    handles = [m.register_forward_hook(hook(p)) for p, m in model.named_modules()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def require_float16(reference: torch.nn.Module, tokens: Array) -> Trace:
    """Run PyTorch's model in float32, and refuse activations that float16 does not hold.

    Args:
        reference: the model.
        tokens: ids [n].

    Returns:
        its `Trace`.

    Raises:
        NumericError: names the module with the largest activation.
    """
    with recorded_ranges(reference) as found:
        trace = run_reference(reference, tokens)
    path, largest = max(
        ((path, max(values)) for path, values in found.items()), key=lambda item: item[1]
    )
    if largest > FLOAT16_MAX:
        first = next(p for p, values in found.items() if max(values) > FLOAT16_MAX)
        raise NumericError(
            f"activations of this model overflow in float16, which ends at {FLOAT16_MAX:,.0f}: "
            f"{largest:.3g} at {path or 'the logits'}, first beyond it at {first}; nothing was "
            "published. Add --runtime-precision auto, or convert with --dtype bfloat16"
        )
    return trace


@dataclass(frozen=True)
class Ranges:
    """Largest magnitudes of activations.

    Attributes:
        stream: of what runs from layer to layer, and of what each part of a layer adds to it.
        inside: part of a layer ("mlp") → largest magnitude inside of it, for each layer.
    """

    stream: float
    inside: Mapping[str, Sequence[float]]


def measure_ranges(
    checkpoint: Checkpoint, windows: Sequence[Array], *, trust_remote_code: bool = False
) -> Ranges:
    """Run a checkpoint's layers one after the other in float32.

    Args:
        checkpoint: the source.
        windows: token ids [tokens], all of one length.
        trust_remote_code: allow the checkpoint's own code.

    Memory holds one layer and the activations of all windows.

    Raises:
        UnsupportedError: layers of this model cannot be run on their own.
    """
    import torch

    from torch2mlx.calibration.blocks import Blocks

    blocks = Blocks(
        checkpoint.config,
        checkpoint.state,
        checkpoint.source,
        torch.device("cpu"),
        checkpoint.folder,
        trust_remote_code,
    )
    inside: dict[str, list[float]] = {}
    with torch.no_grad():
        block, numbers = blocks.entrance(np.stack(windows))
        hidden = block.first(numbers)
        stream = float(hidden.abs().max())
        for index in range(blocks.count):
            block = blocks.block(index)
            with recorded_ranges(block.layer) as found:
                hidden = block.run(hidden).hidden
            stream = max(stream, float(hidden.abs().max()))
            for path, (entered, left) in found.items():
                child, _, rest = path.partition(".")
                if not child:
                    continue
                values = inside.setdefault(child, [0.0] * blocks.count)
                if rest:
                    values[index] = max(values[index], entered, left)
                else:
                    stream = max(stream, left)
    return Ranges(stream, inside)


def precision_of_ranges(
    checkpoint: Checkpoint,
    outputs: Iterable[Output],
    paths: Sequence[str],
    progress: Progress,
    trust_remote_code: bool = False,
) -> dict[str, str]:
    """Types that modules of a result need, as its activations on text call for.

    Args:
        checkpoint: what is converted.
        outputs: of the plan; only float16 among them can be too narrow.
        paths: of the result's modules.
        progress: listener.
        trust_remote_code: run the checkpoint's own code.

    Returns:
        pattern of module paths → type, as `choose_precision` gives it.
    """
    from torch2mlx.verification.budgets import evaluation_windows

    if not any(output.expr.dtype.name == "F16" for output in outputs):
        return {}
    with progress.stage("Measuring how large activations become"):
        windows = evaluation_windows(checkpoint, trust_remote_code)[0]
        ranges = measure_ranges(checkpoint, windows, trust_remote_code=trust_remote_code)
    return choose_precision(ranges, paths)


def choose_precision(ranges: Ranges, paths: Sequence[str]) -> dict[str, str]:
    """A policy for a model that is stored in float16, so that nothing overflows.

    Args:
        ranges: measured.
        paths: of the MLX model's modules.

    Returns:
        pattern → type; empty where float16 holds everything with room to spare.
    """
    limit = FLOAT16_MAX / _MARGIN
    unsafe = {part: [v > limit for v in values] for part, values in ranges.inside.items()}
    wide = {part for part, layers in unsafe.items() if any(layers)}
    if ranges.stream <= limit and not wide:
        return {}
    embedding = next((p for p in paths if is_token_embedding(f"{p}.weight")), None)
    known = all(any(matches(part, path) for path in paths) for part in wide)
    if embedding is None or not known:
        return {"*": "float32"}
    if ranges.stream <= limit:
        return {
            pattern: "float32" for part in sorted(wide) for pattern in _patterns(part, unsafe[part])
        }
    # What leaves the embedding is the stream's type, and sums with it stay in it.
    policy = {embedding: "float32"}
    for part, layers in sorted(unsafe.items()):
        compound = any(matches(f"{part}.*", path) for path in paths)
        if part in wide or compound:
            policy[part] = "float16"
            policy |= dict.fromkeys(_patterns(part, layers), "float32")
    return policy


def _patterns(part: str, layers: Sequence[bool]) -> list[str]:
    """Globs for a part in some layers: for all of them where it is most."""
    numbers = [i for i, wide in enumerate(layers) if wide]
    if 2 * len(numbers) > len(layers):
        return [part]
    return [f"{i}.{part}" for i in numbers]
