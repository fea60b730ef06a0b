"""The model file of a decoder: classes as mlx-lm's own models have them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import torch

from torch2mlx.compiler.codegen.file import (
    GeneratedClasses,
    StoredWeight,
    formatted,
    generate_classes,
)
from torch2mlx.compiler.codegen.runtime_source import runtime_source
from torch2mlx.compiler.decoders import lowering as _lowering  # noqa: F401  (registers)
from torch2mlx.compiler.decoders.placement import CacheSlot, Placed, place
from torch2mlx.compiler.decoders.repetition import find_repetition, repeated, shortened
from torch2mlx.compiler.decoders.rotary import with_rope
from torch2mlx.compiler.decoders.skeleton import Skeleton
from torch2mlx.compiler.decoders.tracing import trace
from torch2mlx.compiler.dimensions import dimension_names
from torch2mlx.compiler.graph import Graph
from torch2mlx.compiler.package import tied_names
from torch2mlx.compiler.passes import optimized
from torch2mlx.compiler.program import build_program
from torch2mlx.compiler.reading import build_graph
from torch2mlx.compiler.runtime import decoding
from torch2mlx.errors import CompileError

__all__ = ["GeneratedDecoder", "generate_decoder"]

_MODEL = '''
@dataclass
class ModelArgs(BaseModelArgs):
    model_type: str = {model_type!r}
    num_hidden_layers: int = {depth}
    vocab_size: int = {vocabulary}


class Model({root}):
    def __init__(self, args):
        super().__init__()
        self.args = args
        self.model_type = args.model_type

    def __call__(self, inputs, cache=None):
        """Logits [batch, length, vocabulary] of token ids [batch, length]."""
        if cache is None:
            cache = self.make_cache()
        return super().__call__(inputs, cache)

    @property
    def layers(self):
        return {layers}

    def make_cache(self):
        {caches}
'''


_KEPT = """
    @property
    def cast_predicate(self):
        return lambda name: name not in {names}
"""


@dataclass(frozen=True)
class GeneratedDecoder:
    """A model file, and what its weights are.

    Attributes:
        source: of model.py.
        weights: name in the weight file → the original's parameter or buffer, and its axes.
        constants: buffers of the original that no checkpoint holds.
        slots: what the list of caches keeps.
        operators: number of nodes that were lowered.
    """

    source: str
    weights: Mapping[str, StoredWeight]
    constants: Mapping[str, torch.Tensor]
    slots: tuple[CacheSlot, ...]
    operators: int


def generate_decoder(skeleton: Skeleton) -> GeneratedDecoder:
    """Write the model of a skeleton, no weight read.

    Raises:
        CompileError: with every reason why it has no exact counterpart.
    """
    model = skeleton.model
    exported, graph = _graph(model)
    placed = place(graph)
    program = optimized(with_rope(build_program(placed.graph)))
    first = _keys_cache(placed.slots)
    total = f"visible_keys({first}, input_ids.shape[1]).shape[-1]"
    classes = generate_classes(program, dtype=mx.bfloat16, extents={"total": total})
    weights = {
        name: StoredWeight(placed.renamed.get(stored.source, stored.source), stored.axes)
        for name, stored in classes.weights.items()
    }
    lifted = {n: t for n, t in exported.constants.items() if isinstance(t, torch.Tensor)}
    constants = {**lifted, **skeleton.constants}
    used = {stored.source for stored in weights.values()}
    unknown = [n for n in used & set(constants) if constants[n].device.type == "meta"]
    if unknown:
        raise CompileError(
            type(model).__name__,
            [f"{name}: a tensor that the model keeps outside of its buffers" for name in unknown],
        )
    whole = (*model.named_parameters(), *model.named_buffers())
    exact = {name for name, value in whole if value.dtype == torch.float32}
    kept = sorted({n for n, stored in weights.items() if stored.source in exact})
    text = model_file(classes, placed, model.config, kept)
    return GeneratedDecoder(text, weights, constants, placed.slots, len(placed.graph.nodes))


def _graph(model: Any) -> tuple[torch.export.ExportedProgram, Graph]:
    """What a model computes; of layers that repeat, two of each kind are followed."""
    tied = tied_names(model)
    repetition = find_repetition(model)
    if repetition is not None:
        try:
            with shortened(model, repetition):
                exported, graph = _traced(model, tied)
        except CompileError as error:
            # The model counts its layers by its config; every other reason would come again.
            if not any("out of range" in reason for reason in error.reasons):
                raise
        else:
            whole = repeated(graph, repetition)
            if whole is not None:
                return exported, whole
    return _traced(model, tied)


def _traced(model: Any, tied: Mapping[str, str]) -> tuple[torch.export.ExportedProgram, Graph]:
    exported = trace(model)
    names = {
        symbol: "total" if name.startswith("cache") else name
        for symbol, name in dimension_names(exported, None).items()
    }
    return exported, build_graph(exported, type(model).__name__, tied, names)


def model_file(
    classes: GeneratedClasses, placed: Placed, config: Any, kept: Sequence[str] = ()
) -> str:
    """Source of model.py; `kept` are parameters that stay float32 whatever the others are."""
    writer = classes.writer
    imports: dict[str, set[str]] = {"mlx_lm.models.base": {"BaseModelArgs"}}
    for name, module in writer.imports.items():
        imports.setdefault(module, set()).add(name)
    for slot in placed.slots:
        names = re.findall(r"\w+Cache(?:List)?|CacheList", _cache(slot))
        imports.setdefault("mlx_lm.models.cache", set()).update(names)
    runtime = dict(writer.runtime)
    if any("visible_keys(" in text for text in classes.texts):
        runtime["visible_keys"] = decoding.visible_keys
    imported, definitions = runtime_source(runtime)
    standard = {*imported, "from dataclasses import dataclass"}
    others = [line for line in sorted(standard) if "mlx_lm" in line]
    body = "\n\n\n".join(filter(None, [definitions, *classes.texts]))
    if "math." in body:
        standard.add("import math")
    layers = classes.tree.access(placed.layers, "")
    text = config.get_text_config()
    model = _MODEL.format(
        model_type=config.model_type,
        depth=text.num_hidden_layers,
        vocabulary=text.vocab_size,
        root=classes.root,
        layers=layers,
        caches=_caches(placed.slots, layers),
    )
    if kept:
        model += _KEPT.format(names=list(kept))
    header = [
        f'"""{classes.root} for mlx-lm; written by torch2mlx from its PyTorch source."""',
        "",
        *sorted(standard.difference(others)),
        "",
        "import mlx.core as mx",
        "import mlx.nn as nn",
        *others,
        *(f"from {m} import {', '.join(sorted(names))}" for m, names in sorted(imports.items())),
    ]
    return formatted("\n".join(header) + f"\n\n\n{body}\n\n{model}")


def _cache(slot: CacheSlot) -> str:
    keys = f"RotatingKVCache(max_size={slot.window})" if slot.window else "KVCache()"
    if not slot.states:
        return keys
    states = f"ArraysCache({slot.states})"
    return f"CacheList({states}, {keys})" if slot.keys else states


def _keys_cache(slots: Sequence[CacheSlot]) -> str:
    """The first cache of keys, which alone know how many there are."""
    number = next((i for i, slot in enumerate(slots) if slot.keys), 0)
    slot = slots[number]
    return f"cache[{number}][1]" if slot.states and slot.keys else f"cache[{number}]"


def _caches(slots: tuple[CacheSlot, ...], layers: str) -> str:
    """Statements that make the list of caches."""
    kinds = [_cache(slot) for slot in slots]
    if len(set(kinds)) == 1:
        return f"return [{kinds[0]} for _ in {layers}]"
    return f"return [{', '.join(kinds)}]"
