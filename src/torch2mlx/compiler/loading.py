"""How a generated model finds its weights: `load` in model.py for one file or many, plain or
quantized.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["stored_weights", "with_loader"]

_ONE_FILE = '    weights = mx.load(str(Path(folder) / "model.safetensors"))\n'
_SHARDS = """    weights = {}
    for file in sorted(Path(folder).glob("model*.safetensors")):
        weights |= mx.load(str(file))
"""
_QUANTIZED = """    formats = json.loads((Path(folder) / "config.json").read_text())["quantization"]
    base = {key: formats[key] for key in ("group_size", "bits", "mode")}

    def stored(path, module):
        return formats.get(path, True) if f"{path}.scales" in weights else False

    nn.quantize(model, **base, class_predicate=stored)
"""


def with_loader(source: str, class_name: str, *, sharded: bool, quantized: bool) -> str:
    """The source of model.py with the `load` that its weight files need.

    Args:
        source: as generated, whose `load` reads one file of plain weights.
        class_name: of the root class.
        sharded: the weights are in several files.
        quantized: some layers are.
    """
    if not sharded and not quantized:
        return source
    head = source[: source.rindex("def load(")]
    if quantized:
        head = head.replace("from pathlib import Path", "import json\nfrom pathlib import Path", 1)
    if "import mlx.core as mx" not in head:
        head = head.replace("import mlx.nn as nn", "import mlx.core as mx\nimport mlx.nn as nn", 1)
    return (
        f'{head}def load(folder="."):\n'
        '    """The model with its weights from a folder, ready for inference."""\n'
        f"    model = {class_name}()\n"
        f"{_SHARDS if sharded else _ONE_FILE}"
        f"{_QUANTIZED if quantized else ''}"
        "    model.load_weights(list(weights.items()))\n"
        "    model.eval()\n"
        "    return model\n"
    )


def stored_weights(folder: Path) -> dict[str, Any]:
    """All arrays of the weight files, lazily."""
    import mlx.core as mx

    weights: dict[str, Any] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        loaded: Any = mx.load(str(file))
        weights |= loaded
    return weights
