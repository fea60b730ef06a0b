"""Quantization of a generated model, by the options that ports know.

The weight files hold packed weights, config.json says how (mlx-lm's `quantization` entry), and
`load` in model.py builds the layers so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch2mlx.compiler.loading import stored_weights
from torch2mlx.compiler.parity import import_model
from torch2mlx.dtypes import DTYPES, DType
from torch2mlx.errors import OptionError, ParityError
from torch2mlx.quantization.recipe import (
    Assignment,
    QuantOptions,
    assign_schemes,
    nothing_quantized,
)
from torch2mlx.quantization.targets import QuantTarget

__all__ = ["KERNELS", "Quantized", "assign", "check_quantized"]

KERNELS = 1e-3
"""Relative L2 distance of a quantized layer's kernel from the same numbers in float32."""


@dataclass(frozen=True)
class Quantized:
    """What quantization did.

    Attributes:
        assignment: format of each layer.
        drift: relative L2 distance of the outputs from the unquantized model's, on the example;
            None: not measured.
        exact: outputs on the example with the same stored numbers in ordinary layers.
    """

    assignment: Assignment
    drift: float | None
    exact: tuple[Any, ...] = ()


def assign(model: Any, options: QuantOptions, dtype: DType = DTYPES["F32"]) -> Assignment:
    """The format of every layer that MLX can quantize.

    Args:
        model: an instance of the generated class; its weights are not evaluated.
        options: as for checkpoints.
        dtype: of what is not quantized.

    Raises:
        OptionError: nothing can be quantized, or an option that does not fit the layers.
    """
    targets = [
        QuantTarget(path, type(module).__name__, tuple(module.weight.shape))
        for path, module in model.named_modules()
        if hasattr(module, "to_quantized")
    ]
    if not targets:
        raise OptionError(
            f"{type(model).__name__}: -q: no layer can be quantized (MLX quantizes Linear and "
            "Embedding); leave out -q"
        )
    assignment = assign_schemes(targets, options, layers=_repeated(targets), dtype=dtype)
    if not any(assignment.schemes.values()):
        raise nothing_quantized(assignment)
    return assignment


def _repeated(targets: Sequence[QuantTarget]) -> int:
    """Number of layers, as far as the paths tell."""
    numbers = [int(p) for t in targets for p in t.path.split(".") if p.isdecimal()]
    return 1 + max(numbers, default=0)


def check_quantized(
    folder: Path,
    class_name: str,
    assignment: Assignment,
    plain: Sequence[Any],
    run: Callable[[Any], Sequence[Any]],
) -> Quantized:
    """Compare a written quantized model with its own numbers in ordinary layers.

    Args:
        folder: of the model.
        class_name: of the root class.
        assignment: what was done.
        plain: outputs of the unquantized model on the example.
        run: calls a model on the example; its outputs.

    Raises:
        OptionError: a layer's weight is also used outside of its layer.
        ParityError: the layers compute something else than their stored numbers.
    """
    try:
        found = run(import_model(folder).load(str(folder)))
    except Exception as error:
        raise OptionError(
            f"{class_name}: -q: a layer's weight is also used outside its layer ({error}); leave "
            "that layer unquantized with --keep"
        ) from error
    exact = run(_dequantized(folder, class_name, assignment))
    distance = _distance(exact, found)
    if not distance <= KERNELS:
        raise ParityError(
            f"{class_name}: the quantized model differs from its own dequantized weights: relative "
            f"L2 error {distance:.1e}, limit {KERNELS:.0e}; nothing was written"
        )
    return Quantized(assignment, _distance(plain, found), tuple(exact))


def _dequantized(folder: Path, class_name: str, assignment: Assignment) -> Any:
    """The same stored numbers in ordinary layers."""
    import mlx.core as mx

    weights = stored_weights(folder)
    for path, scheme in assignment.schemes.items():
        if scheme is None:
            continue
        packed, scales = weights.pop(f"{path}.weight"), weights.pop(f"{path}.scales")
        biases = weights.pop(f"{path}.biases", None)
        weights[f"{path}.weight"] = mx.dequantize(
            packed, scales, biases, scheme.group_size, scheme.bits, scheme.mode
        )
    model = getattr(import_model(folder), class_name)()
    model.load_weights(list(weights.items()))
    model.eval()
    return model


def _distance(expected: Sequence[Any], found: Sequence[Any]) -> float:
    """Relative L2 distance over all floating outputs."""
    import mlx.core as mx

    wide = [
        (a.astype(mx.float32), b.astype(mx.float32))
        for a, b in zip(expected, found, strict=True)
        if isinstance(a, mx.array) and mx.issubdtype(a.dtype, mx.floating)
    ]
    total = sum(float(mx.sum(mx.square(a))) for a, _ in wide)
    error = sum(float(mx.sum(mx.square(a - b))) for a, b in wide)
    return float((error / total) ** 0.5) if total else float(error**0.5)
