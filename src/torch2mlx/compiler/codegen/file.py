"""The generated file: imports, classes, `load`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from torch2mlx.compiler.codegen.blocks import partition
from torch2mlx.compiler.codegen.classes import ClassWriter
from torch2mlx.compiler.codegen.runtime_source import runtime_source
from torch2mlx.compiler.codegen.signature import Argument, arguments
from torch2mlx.compiler.codegen.tree import ModuleTree
from torch2mlx.compiler.program import Program, values_in

__all__ = ["GeneratedModel", "StoredWeight", "generate"]

_LOAD = '''
def load(folder="."):
    """The model with its weights from a folder, ready for inference."""
    model = {name}()
    model.load_weights(str(Path(folder) / "model.safetensors"))
    model.eval()
    return model
'''


@dataclass(frozen=True)
class StoredWeight:
    """A tensor of the weight file.

    Attributes:
        source: qualified name in the original.
        axes: order of the original's axes; None: as it is.
    """

    source: str
    axes: tuple[int, ...] | None


@dataclass(frozen=True)
class GeneratedModel:
    """Source of a model, and what its weight file must hold.

    Attributes:
        source: of model.py.
        runtime: of runtime.py; "" if nothing of it is used.
        class_name: of the root.
        arguments: of its `__call__`.
        weights: name in the weight file → where its data comes from.
        paths: path in the original → path in the generated model, for generated classes.
    """

    source: str
    runtime: str
    class_name: str
    arguments: tuple[Argument, ...]
    weights: Mapping[str, StoredWeight]
    paths: Mapping[str, str]


def generate(program: Program) -> GeneratedModel:
    """Write a program as classes in the shape of the original module tree."""
    root = partition(program)
    layers = program.layers
    used = {id(v) for s in program.steps for v in values_in((s.call.args, s.call.kwargs))} | {
        id(v) for v in values_in((program.outputs, program.states))
    }
    functional = [
        w
        for w in program.graph.weights
        if id(program.weights[w.name]) in used or w.name in program.states
    ]
    # A layer holds its own weights, also where other code reads them.
    functional = [w for w in functional if w.name.rpartition(".")[0] not in layers]
    paths = list(dict.fromkeys(block.path for block in root.blocks()))
    tree = ModuleTree(paths, layers, functional, [w.name for w in program.graph.weights])
    writer = ClassWriter(program, root, tree)
    classes = writer.write()
    name = writer.by_path[""].name
    runtime = runtime_source(writer.runtime) if writer.runtime else ""
    header = [
        f'"""{name} for MLX; written by torch2mlx from its PyTorch source."""',
        "",
        *(["import math"] if any("math." in c for c in classes) else []),
        "from pathlib import Path",
        "",
        *(["import mlx.core as mx"] if any("mx." in c for c in classes) else []),
        "import mlx.nn as nn",
        *([f"from runtime import {', '.join(sorted(writer.runtime))}"] if writer.runtime else []),
    ]
    text = "\n".join(header) + "\n\n\n" + "\n\n\n".join(classes) + "\n\n" + _LOAD.format(name=name)
    return GeneratedModel(
        formatted(text),
        formatted(runtime) if runtime else "",
        name,
        tuple(arguments(program.graph)),
        _weights(program, tree, [w.name for w in functional]),
        {path: tree.name(path) if path else "" for path in paths},
    )


def _weights(program: Program, tree: ModuleTree, functional: list[str]) -> dict[str, StoredWeight]:
    stored = {tree.name(name): StoredWeight(name, None) for name in functional}
    layers = program.layers
    for weight in program.graph.weights:
        owner, _, leaf = weight.name.rpartition(".")
        layer = layers.get(owner)
        if layer is None or leaf == "num_batches_tracked":
            continue
        axes = dict(layer.axes).get(leaf)
        stored[f"{tree.name(owner)}.{leaf}"] = StoredWeight(weight.name, axes)
    return dict(sorted(stored.items()))


def formatted(text: str) -> str:
    """Source formatted by ruff, where it is installed."""
    if find_spec("ruff") is None:
        return text
    command = [sys.executable, "-m", "ruff", "format", "--isolated", "--line-length", "100", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else text
