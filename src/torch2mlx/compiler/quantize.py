"""Quantization of a generated folder, by the options that ports know.

Layers become their quantized kind in place: the weight file holds packed weights, config.json
says how (mlx-lm's `quantization` entry), and `load` in model.py builds the layers so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch2mlx.compiler.parity import import_model
from torch2mlx.errors import OptionError, ParityError
from torch2mlx.quantization.recipe import Assignment, QuantOptions, assign_schemes
from torch2mlx.quantization.targets import QuantTarget

__all__ = ["Quantized", "quantize_folder"]

_LOAD = '''def load(folder="."):
    """The model with its weights from a folder, ready for inference."""
    model = {name}()
    weights = mx.load(str(Path(folder) / "model.safetensors"))
    formats = json.loads((Path(folder) / "config.json").read_text())["quantization"]
    base = {{key: formats[key] for key in ("group_size", "bits", "mode")}}

    def stored(path, module):
        return formats.get(path, True) if f"{{path}}.scales" in weights else False

    nn.quantize(model, **base, class_predicate=stored)
    model.load_weights(list(weights.items()))
    model.eval()
    return model
'''

_AGREEMENT = 1e-3
"""Relative L2 distance of a quantized layer's kernel from the same numbers in float32."""


@dataclass(frozen=True)
class Quantized:
    """What quantization did.

    Attributes:
        assignment: format of each layer.
        drift: relative L2 distance of the outputs from the unquantized model's, on the example.
    """

    assignment: Assignment
    drift: float


def quantize_folder(
    folder: Path, class_name: str, options: QuantOptions, run: Callable[[Any], Sequence[Any]]
) -> Quantized:
    """Quantize a generated model where it lies.

    Args:
        folder: holds model.py, model.safetensors and config.json; they are replaced.
        class_name: of the root class.
        options: as for checkpoints.
        run: calls a model on the example; its outputs.

    Raises:
        OptionError: nothing can be quantized, or an option that does not fit the layers.
        ParityError: the quantized layers compute something else than their stored numbers.
    """
    import mlx.core as mx
    from mlx.nn.layers.quantized import quantize
    from mlx.utils import tree_flatten

    model = import_model(folder).load(str(folder))
    targets = _targets(model)
    if not targets:
        raise OptionError(
            f"{class_name}: -q: no layer can be quantized (MLX quantizes Linear and Embedding); "
            "leave out -q"
        )
    assignment = assign_schemes(targets, options, layers=_repeated(targets))
    before = run(model)
    schemes = {path: s.to_config() for path, s in assignment.schemes.items() if s is not None}
    quantize(model, class_predicate=lambda path, module: schemes.get(path, False))
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization"] = assignment.to_config()
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    _write_load(folder / "model.py", class_name)
    try:
        after = run(import_model(folder).load(str(folder)))
    except Exception as error:
        raise OptionError(
            f"{class_name}: -q: a layer's weight is also used outside its layer ({error}); leave "
            "that layer unquantized with --keep"
        ) from error
    exact = run(_dequantized(folder, model, schemes))
    distance = _distance(exact, after)
    if not distance <= _AGREEMENT:
        raise ParityError(
            f"{class_name}: the quantized model differs from its own dequantized weights: relative "
            f"L2 error {distance:.1e}, limit {_AGREEMENT:.0e}; nothing was written"
        )
    return Quantized(assignment, _distance(before, after))


def _targets(model: Any) -> list[QuantTarget]:
    return [
        QuantTarget(path, type(module).__name__, tuple(module.weight.shape))
        for path, module in model.named_modules()
        if hasattr(module, "to_quantized")
    ]


def _repeated(targets: Sequence[QuantTarget]) -> int:
    """Number of layers, as far as the paths tell."""
    numbers = [int(p) for t in targets for p in t.path.split(".") if p.isdecimal()]
    return 1 + max(numbers, default=0)


def _write_load(file: Path, class_name: str) -> None:
    source = file.read_text(encoding="utf-8")
    head = source[: source.index("def load(")]
    head = head.replace("from pathlib import Path", "import json\nfrom pathlib import Path", 1)
    if "import mlx.core as mx" not in head:
        head = head.replace("import mlx.nn as nn", "import mlx.core as mx\nimport mlx.nn as nn", 1)
    file.write_text(head + _LOAD.format(name=class_name), encoding="utf-8")


def _dequantized(folder: Path, quantized: Any, schemes: dict[str, Any]) -> Any:
    """The same stored numbers in ordinary layers."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    weights = dict(tree_flatten(quantized.parameters()))
    for path, scheme in schemes.items():
        packed, scales = weights.pop(f"{path}.weight"), weights.pop(f"{path}.scales")
        biases = weights.pop(f"{path}.biases", None)
        weights[f"{path}.weight"] = mx.dequantize(packed, scales, biases, **scheme)
    module = import_model(folder)
    model = getattr(module, type(quantized).__name__)()
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
