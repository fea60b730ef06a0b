"""Programs as text, and run on data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from torch import nn

from torch2mlx.compiler.builder import Value
from torch2mlx.compiler.export import export_module
from torch2mlx.compiler.layers import LayerUse
from torch2mlx.compiler.program import Program, build_program
from torch2mlx.compiler.reading import build_graph
from torch2mlx.compiler.symbolic import SymbolicInt


def lowered(module: nn.Module, *args: Any, dynamic_shapes: Any = None) -> Program:
    """A module's program before any pass."""
    exported = export_module(module.eval(), args, None, dynamic_shapes)
    return build_program(build_graph(exported, type(module).__name__))


def listing(program: Program) -> list[str]:
    """The calls, with a number for each value that is made."""
    named = {**program.inputs, **program.weights}
    names = {id(v): name for name, v in named.items()}

    def text(argument: Any) -> str:
        if isinstance(argument, Value):
            return names.get(id(argument)) or str(argument.array.tolist())
        if isinstance(argument, list | tuple):
            return "(" + ", ".join(map(text, argument)) + ")"
        return repr(argument).removeprefix("mlx.core.")

    lines = []
    for number, step in enumerate(program.steps):
        call = step.call
        use = call.function
        name = use.layer.path if isinstance(use, LayerUse) else use.__name__
        given = [*map(text, call.args), *(f"{k}={text(v)}" for k, v in call.kwargs.items())]
        for value in call.outputs:
            names[id(value)] = f"%{number}" + (f".{value.index}" if value.index else "")
        lines.append(f"%{number} = {name}({', '.join(given)})")
    return lines


def run(program: Program, module: nn.Module, *args: torch.Tensor) -> list[np.ndarray[Any, Any]]:
    """The outputs for inputs."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    arrays = {id(v): mx.array(tensors[n].detach().numpy()) for n, v in program.weights.items()}
    for value, given in zip(program.inputs.values(), args, strict=True):
        arrays[id(value)] = mx.array(given.numpy())

    def real(argument: Any) -> Any:
        if isinstance(argument, Value):
            return arrays.get(id(argument), argument.array)
        if isinstance(argument, list | tuple):
            return type(argument)(map(real, argument))
        return int(argument) if isinstance(argument, SymbolicInt) else argument

    for step in program.steps:
        call = step.call
        function = call.function
        if isinstance(function, LayerUse):
            layer, axes = function.layer.build(), dict(function.layer.axes)
            layer.load_weights(
                [
                    (name, mx.transpose(array, axes[name]) if name in axes else array)
                    for name, array in (
                        (key, mx.array(tensors[f"{function.layer.path}.{key}"].detach().numpy()))
                        for key in ("weight", "bias", "running_mean", "running_var")
                        if f"{function.layer.path}.{key}" in tensors
                    )
                ]
            )
            function = layer
        made = function(*map(real, call.args), **{k: real(v) for k, v in call.kwargs.items()})
        for value, array in zip(call.outputs, made if call.sequence else [made], strict=True):
            arrays[id(value)] = array
    return [np.array(real(o)) for o in program.outputs]


@pytest.fixture
def check() -> Callable[..., tuple[list[str], list[str]]]:
    """Apply a pass; the program before and after, once both give what PyTorch gives."""

    def apply(
        function: Callable[[Program], Program],
        module: nn.Module,
        *args: torch.Tensor,
        dynamic_shapes: Any = None,
    ) -> tuple[list[str], list[str]]:
        before = lowered(module, *args, dynamic_shapes=dynamic_shapes)
        after = function(before)
        with torch.no_grad():
            expected = module(*args).numpy()
        for program in (before, after):
            result = run(program, module, *args)[0]
            np.testing.assert_allclose(result, expected, rtol=2e-5, atol=2e-6)
        return listing(before), listing(after)

    return apply
