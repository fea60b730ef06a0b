"""Modules that do nothing but normalise by their own weight, as layers of `mlx.nn`.

Before: class LlamaRMSNorm: return mx.fast.rms_norm(x, self.weight, 1e-6)
After:  nn.RMSNorm(dims, eps=1e-6)
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from torch2mlx.compiler.builder import Call, Value
from torch2mlx.compiler.layers import Layer, LayerUse
from torch2mlx.compiler.passes.rewriting import make, rewritten, users_of
from torch2mlx.compiler.program import Program, Step

__all__ = ["use_norm_layers"]


def use_norm_layers(program: Program) -> Program:
    """Let the layer hold the weights, where nothing else reads them."""
    names = {id(v): name for name, v in program.weights.items()}
    members: dict[str, set[str]] = {}
    for name in program.weights:
        path = name.rpartition(".")[0]
        while path:
            members.setdefault(path, set()).add(name)
            path = path.rpartition(".")[0]
    users = users_of(program.steps)
    dtypes = {w.name: str(w.type.dtype).removeprefix("torch.") for w in program.graph.weights}

    def layer_of(call: Call, path: str) -> Layer | None:
        if call.function is mx.fast.rms_norm:
            _, *given, eps = call.args
            leaves, class_name = ["weight"], "RMSNorm"
        elif call.function is mx.fast.layer_norm and call.args[1] is not None:
            _, *given, eps = call.args
            leaves, class_name = ["weight", "bias"], "LayerNorm"
        else:
            return None
        found = [names.get(id(v)) for v in given if v is not None]
        wanted = [f"{path}.{leaf}" for leaf in leaves][: len(found)]
        if not path or call.kwargs or not found or found != wanted or members[path] != {*wanted}:
            return None
        kwargs: dict[str, Any] = {"eps": eps} if eps != 1e-5 else {}
        if class_name == "LayerNorm" and len(found) == 1:
            kwargs["bias"] = False
        dims = (int(given[0].array.shape[0]),)
        return Layer(path, class_name, dims, tuple(kwargs.items()), (), dtypes[wanted[0]])

    candidates: dict[int, Layer] = {}
    for step in program.steps:
        layer = layer_of(step.call, step.origin.path)
        if layer is not None:
            candidates[id(step.call)] = layer
    kept = {
        path
        for path in {layer.path for layer in candidates.values()}
        if len({candidates.get(id(c)) for n in members[path] for c in _all(users, program, n)}) == 1
    }

    def rule(step: Step, steps: list[Step]) -> Value | None:
        layer = candidates.get(id(step.call)) or layer_of(step.call, step.origin.path)
        if layer is None or layer.path not in kept:
            return None
        new = make(LayerUse(layer), step.call.args[0])
        if new.dtype != step.call.outputs[0].dtype:
            return None
        assert new.call is not None
        steps.append(Step(new.call, step.origin))
        return new

    return rewritten(program, rule)


def _all(users: dict[int, list[Call]], program: Program, name: str) -> list[Call]:
    return users.get(id(program.weights[name]), [])
