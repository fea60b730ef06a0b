"""The generated file: imports, classes, `load`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from torch2mlx.compiler.codegen.blocks import partition
from torch2mlx.compiler.codegen.classes import ClassWriter
from torch2mlx.compiler.codegen.expressions import literal
from torch2mlx.compiler.codegen.runtime_source import runtime_source
from torch2mlx.compiler.codegen.signature import Argument, arguments, named_tuples
from torch2mlx.compiler.codegen.tree import ModuleTree
from torch2mlx.compiler.graph import Weight
from torch2mlx.compiler.host import Host
from torch2mlx.compiler.layers import Layer
from torch2mlx.compiler.program import Program, values_in

__all__ = [
    "GeneratedClasses",
    "GeneratedModel",
    "StoredWeight",
    "formatted",
    "generate",
    "generate_classes",
]

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
        class_name: of the root.
        methods: original's method → arguments of the generated one; "forward" is `__call__`.
        weights: name in the weight file → where its data comes from.
        paths: path in the original → path in the generated model, for generated classes.
    """

    source: str
    class_name: str
    methods: Mapping[str, tuple[Argument, ...]]
    weights: Mapping[str, StoredWeight]
    paths: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class GeneratedClasses:
    """Programs of one module as classes.

    Attributes:
        writer: that wrote them.
        tree: attributes of the generated model.
        texts: source of every class, inner ones first.
        weights: name in the weight file → where its data comes from.
        paths: path in the original → path in the generated model, for generated classes.
    """

    writer: ClassWriter
    tree: ModuleTree
    texts: tuple[str, ...]
    weights: Mapping[str, StoredWeight]
    paths: Mapping[str, str]

    @property
    def root(self) -> str:
        """Name of the class of the whole model."""
        return self.writer.by_path[""].name


def generate_classes(
    *programs: Program, dtype: Any = None, extents: Mapping[str, str] | None = None
) -> GeneratedClasses:
    """Write the programs of one module as classes in the shape of the original module tree.

    Args:
        programs: one for each method; they agree on which modules are layers
            (`build_programs`).
        dtype: an MLX dtype that stands for whatever the model is loaded in; None: dtypes are fixed.
        extents: dynamic extent that no input has → source of it in the root's method.
    """
    layers = {path: layer for program in programs for path, layer in program.layers.items()}
    roots = [partition(program, layers, dtype) for program in programs]
    functional = {w.name: w for program in programs for w in _functional(program, layers)}
    weights = {w.name: w for program in programs for w in program.graph.weights}
    paths = list(dict.fromkeys(block.path for root in roots for block in root.blocks()))
    tree = ModuleTree(paths, layers, list(functional.values()), list(weights))
    writer = ClassWriter(list(zip(programs, roots, strict=True)), tree, dtype, extents)
    return GeneratedClasses(
        writer,
        tree,
        tuple(writer.write()),
        _weights(list(weights), layers, tree, list(functional)),
        {path: tree.name(path) if path else "" for path in paths},
    )


def generate(*programs: Program, host: Host | None = None) -> GeneratedModel:
    """Write the programs of one module as a file of classes with a `load` function.

    Args:
        programs: see `generate_classes`.
        host: what joins the methods; its class becomes the root's base.
    """
    made = generate_classes(*programs)
    name = made.root
    imports, runtime = runtime_source(made.writer.runtime)
    tuples = {k: v for p in programs for k, v in named_tuples(p.graph.out_spec).items()}
    texts = [*(_named_tuple(k, fields) for k, fields in tuples.items()), *made.texts]
    if host is not None:
        more, base = runtime_source({host.base.__name__: host.base})
        imports += more
        texts = [base, *texts[:-1], host.joined(texts[-1])]
    body = "\n\n\n".join(texts)
    standard = {*imports, "from pathlib import Path"}
    if "math." in body:
        standard.add("import math")
    if tuples:
        standard.add("from collections import namedtuple")
    header = [
        f'"""{name} for MLX; written by torch2mlx from its PyTorch source."""',
        "",
        *(["from __future__ import annotations", ""] if runtime or host else []),
        *sorted(standard, key=lambda line: (not line.startswith("import"), line)),
        "",
        *(["import mlx.core as mx"] if "mx." in body + runtime else []),
        "import mlx.nn as nn",
    ]
    parts = ["\n".join(header), body]
    if runtime:
        parts.append(f"# What MLX has no function for.\n\n\n{runtime}")
    text = "\n\n\n".join(parts) + "\n\n" + _LOAD.format(name=name)
    return GeneratedModel(
        formatted(text),
        name,
        {p.graph.method: tuple(arguments(p.graph)) for p in programs},
        made.weights,
        made.paths,
    )


def _named_tuple(name: str, fields: tuple[str, ...]) -> str:
    return f"{name} = namedtuple({literal(name)}, {literal(list(fields))})"


def _functional(program: Program, layers: Mapping[str, Layer]) -> list[Weight]:
    """Weights that code outside of their layer uses, and that no layer holds."""
    used = {id(v) for s in program.steps for v in values_in((s.call.args, s.call.kwargs))} | {
        id(v) for v in values_in((program.outputs, program.states))
    }
    return [
        w
        for w in program.graph.weights
        if (id(program.weights[w.name]) in used or w.name in program.states)
        and w.name.rpartition(".")[0] not in layers
    ]


def _weights(
    names: list[str], layers: Mapping[str, Layer], tree: ModuleTree, functional: list[str]
) -> dict[str, StoredWeight]:
    stored = {tree.name(name): StoredWeight(name, None) for name in functional}
    for name in names:
        owner, _, leaf = name.rpartition(".")
        layer = layers.get(owner)
        if layer is None or leaf == "num_batches_tracked":
            continue
        axes = dict(layer.axes).get(leaf)
        stored[f"{tree.name(owner)}.{leaf}"] = StoredWeight(name, axes)
    return dict(sorted(stored.items()))


def formatted(text: str) -> str:
    """Source formatted by ruff, where it is installed."""
    if find_spec("ruff") is None:
        return text
    command = [sys.executable, "-m", "ruff", "format", "--isolated", "--line-length", "100", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else text
