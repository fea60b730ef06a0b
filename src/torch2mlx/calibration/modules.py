"""Calibration of any module: its matrices fitted to what runs through them on given inputs.

The whole module is one piece here: two copies of it in float32 are in memory, and the activations
of all inputs at the matrix whose turn it is.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torch2mlx.calibration.engine import Calibration, collect
from torch2mlx.calibration.fitting import Fitting, Settings
from torch2mlx.calibration.scratch import Scratch, save_step
from torch2mlx.planning.plan import Output
from torch2mlx.planning.regions import full
from torch2mlx.sources.base import TensorSource

if TYPE_CHECKING:
    import torch

    from torch2mlx.calibration.matching import RowMap
    from torch2mlx.compiler.entry_points import EntryPoint

__all__ = ["calibrate_module"]

Array = np.ndarray[Any, Any]


def calibrate_module(
    module: torch.nn.Module,
    outputs: Sequence[Output],
    source: TensorSource,
    calls: Sequence[EntryPoint],
    folder: Path,
    identity: Mapping[str, Any],
) -> Calibration:
    """Find codes, scales and biases for the matrices that a module multiplies by.

    A matrix that is used for something else too, or more than once, is rounded to nearest, and
    so is one that no call comes by; a note of the result names them.

    Args:
        module: with its values; it stays as it is.
        outputs: of the plan.
        source: of the plan's expressions.
        calls: methods and arguments to calibrate with.
        folder: for scratch files; the result of an earlier run of the same kind is used.
        identity: of the values and of the module, plain.
    """
    import torch

    from torch2mlx.calibration.lockstep import Units, Uses
    from torch2mlx.calibration.matching import match_rows

    settings = Settings()
    scratch = Scratch(
        folder,
        {
            "identity": dict(identity),
            "settings": asdict(settings),
            "calls": [_digest(call) for call in calls],
            "formats": {o.name: f"{o.scheme}, {o.expr.dtype}" for o in outputs if o.scheme},
        },
    )
    if not scratch.done("module"):
        wanted = [o for o in outputs if o.scheme is not None and o.packed is None]
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        original = copy.deepcopy(module).float().eval().to(device)
        rows = match_rows(original, wanted, source)
        quantized = copy.deepcopy(original)

        def passes(through: torch.nn.Module) -> list[Callable[[], Any]]:
            return [_pass(through, call, device) for call in calls]

        units = Units(quantized, list(rows.places))
        products: set[str] = set()
        shared: set[str] = set()
        for each in passes(quantized):
            uses = Uses.of(each, units)
            products |= uses.products.keys()
            stacked = {n for n in products if quantized.get_parameter(n).dim() > 2}
            shared |= uses.products.keys() - uses.once - stacked
        names = products - shared
        _round(quantized, rows, set(rows.places) - names, source)
        work = Fitting(original, quantized, rows, settings, names)
        work.run(list(zip(passes(quantized), passes(original), strict=True)))
        with scratch.writing("module") as step:
            save_step(step, work.tensors(), work.report)
    return collect(source, outputs, scratch)


def _pass(module: torch.nn.Module, call: EntryPoint, device: torch.device) -> Callable[[], Any]:
    import torch
    from torch.utils._pytree import tree_map

    def there(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return (value.float() if value.is_floating_point() else value).to(device)

    args, kwargs = tree_map(there, call.args), tree_map(there, dict(call.kwargs))
    return lambda: getattr(module, call.method)(*args, **kwargs)


def _round(module: torch.nn.Module, rows: RowMap, names: set[str], source: TensorSource) -> None:
    """Give parameters the values that rounding to nearest will write."""
    import torch

    from torch2mlx.quantization.kernel import dequantize_rows, quantize_rows

    for name in sorted(names):
        matrix = module.get_parameter(name).data
        matrix = matrix.view(-1, matrix.shape[-1])
        owners, places = rows.places[name]
        for number in np.unique(owners[owners >= 0]):
            output = rows.outputs[number]
            assert output.scheme is not None
            expr = output.expr
            bits = np.ascontiguousarray(expr.read(full(expr.shape), source))
            parts = quantize_rows(bits.reshape(-1, expr.shape[-1]), expr.dtype, output.scheme)
            rounded = torch.from_numpy(dequantize_rows(parts, expr.dtype, output.scheme))
            here = np.flatnonzero(owners == number)
            matrix[here] = rounded[places[here]].to(matrix.device)


def _digest(call: EntryPoint) -> str:
    """Tells calls apart by their values."""
    import torch
    from torch.utils._pytree import tree_flatten

    leaves, form = tree_flatten((call.args, dict(call.kwargs)))
    digest = hashlib.sha256(f"{call.method} {form}".encode())
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            data = leaf.detach().cpu().contiguous()
            digest.update(f"{data.dtype} {tuple(data.shape)}".encode())
            digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest()
