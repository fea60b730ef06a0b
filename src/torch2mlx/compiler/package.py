"""A module as a folder: code, weights, and the proof that they equal the original."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2mlx.compiler.codegen import GeneratedModel, generate
from torch2mlx.compiler.dimensions import dimension_names
from torch2mlx.compiler.export import export_module
from torch2mlx.compiler.graph import Graph, build_graph
from torch2mlx.compiler.parity import (
    Agreement,
    call_arguments,
    check_parity,
    flat_outputs,
    mlx_array,
)
from torch2mlx.compiler.passes import optimized
from torch2mlx.compiler.program import Program, build_program
from torch2mlx.compiler.quantize import Quantized, quantize_folder
from torch2mlx.errors import OptionError
from torch2mlx.packaging.staging import Staging
from torch2mlx.quantization.recipe import QuantOptions

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

__all__ = [
    "Compilation",
    "CompiledModule",
    "compile_exported",
    "compile_module",
    "compile_source",
]


@dataclass(frozen=True, eq=False)
class Compilation:
    """Every stage of one module, weights not read.

    Attributes:
        exported: torch's program.
        graph: as data.
        program: lowered.
        generated: source and list of weights.
    """

    exported: ExportedProgram
    graph: Graph
    program: Program
    generated: GeneratedModel


@dataclass(frozen=True)
class CompiledModule:
    """A published folder.

    Attributes:
        folder: where it is.
        class_name: of the root in its model.py.
        operators: number of ATen calls that were lowered.
        agreement: what was compared with PyTorch.
        quantized: what quantization did afterwards, or None.
    """

    folder: Path
    class_name: str
    operators: int
    agreement: Agreement
    quantized: Quantized | None = None


def compile_source(
    module: torch.nn.Module,
    example_inputs: Sequence[Any],
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> Compilation:
    """Export, lower and generate, without reading a weight; modules on meta will do.

    Raises:
        CompileError: with every reason at once.
    """
    exported = export_module(module, example_inputs, example_kwargs, dynamic_shapes)
    return _lower(exported, module, type(module).__qualname__.rpartition(".")[2], dynamic_shapes)


def _lower(
    exported: ExportedProgram, module: torch.nn.Module, name: str, dynamic_shapes: Any = None
) -> Compilation:
    graph = build_graph(
        exported, name, tied_names(module), dimension_names(exported, dynamic_shapes)
    )
    program = optimized(build_program(graph))
    return Compilation(exported, graph, program, generate(program))


def compile_module(
    module: torch.nn.Module,
    destination: str | Path,
    example_inputs: Sequence[Any],
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    seed: int = 0,
    quantize: QuantOptions | None = None,
) -> CompiledModule:
    """Write a module's MLX code and weights, compared with PyTorch before they appear.

    Args:
        module: with its weights; compiled as it stands, so call `eval()` first.
        destination: folder to create.
        example_inputs: positional arguments of `forward`.
        example_kwargs: keyword arguments of `forward`.
        dynamic_shapes: as for `torch.export.export`; other extents are fixed.
        seed: of the fresh inputs.
        quantize: quantize the layers after the comparison.

    Raises:
        CompileError: with all reasons why the module has no exact counterpart in MLX.
        DestinationError: the destination exists or cannot be written.
        ParityError: an output differs from PyTorch's; nothing is published.
    """
    on_meta = [n for n, p in module.state_dict().items() if p.device.type == "meta"]
    if on_meta:
        raise OptionError(
            f"{type(module).__name__}: {len(on_meta)} weights have no data (e.g. {on_meta[0]} is "
            "on the meta device); load them first, or call compile_source for the code alone"
        )
    kwargs = example_kwargs or {}
    with Staging(destination) as staging:
        made = compile_source(module, example_inputs, kwargs, dynamic_shapes)
        return _publish(staging, made, module, example_inputs, kwargs, seed, quantize)


def compile_exported(
    program: ExportedProgram,
    destination: str | Path,
    seed: int = 0,
    quantize: QuantOptions | None = None,
) -> CompiledModule:
    """Write the MLX code and weights of what `torch.export` made, on its own example.

    Raises:
        CompileError, DestinationError, ParityError: as `compile_module`.
    """
    assert program.example_inputs is not None
    args, kwargs = program.example_inputs
    with Staging(destination) as staging:
        module = program.module()
        made = _lower(program.run_decompositions({}), module, _root_name(program))
        return _publish(staging, made, module, args, kwargs, seed, quantize)


def _publish(
    staging: Staging,
    made: Compilation,
    module: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    seed: int,
    quantize: QuantOptions | None,
) -> CompiledModule:
    folder, generated = staging.folder, made.generated
    _write(folder, made, module)
    agreement = check_parity(
        folder, generated, made.graph, made.exported, module, args, kwargs, seed
    )
    quantized = None
    if quantize is not None:
        given = call_arguments(generated, args, kwargs)
        quantized = quantize_folder(
            folder, generated.class_name, quantize, lambda model: flat_outputs(model(**given))
        )
    (folder / "README.md").write_text(_readme(made, agreement, quantized), encoding="utf-8")
    operators = len(made.graph.nodes)
    return CompiledModule(staging.publish(), generated.class_name, operators, agreement, quantized)


def _root_name(program: ExportedProgram) -> str:
    """Class of the module that was exported, from the stack of modules of its nodes."""
    for node in program.graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack:
            kind = next(iter(stack.values()))[1]
            name = kind if isinstance(kind, str) else kind.__qualname__
            return str(name).rpartition(".")[2]
    return "Model"


def tied_names(module: torch.nn.Module) -> dict[str, str]:
    """Name of a parameter or buffer → the first name of the same tensor."""
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    named = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    for name, tensor in named:
        if first.setdefault(id(tensor), name) != name:
            tied[name] = first[id(tensor)]
    return tied


def _write(folder: Path, made: Compilation, module: torch.nn.Module) -> None:
    generated = made.generated
    (folder / "model.py").write_text(generated.source, encoding="utf-8")
    if generated.runtime:
        (folder / "runtime.py").write_text(generated.runtime, encoding="utf-8")
    config = {
        "model_class": generated.class_name,
        "inputs": [
            {
                "name": i.name,
                "dtype": str(i.type.dtype).removeprefix("torch."),
                "shape": [n if type(n) is int else repr(n) for n in i.type.shape],
            }
            for i in made.graph.inputs
        ],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    _write_weights(folder / "model.safetensors", made, module)


def _write_weights(file: Path, made: Compilation, module: torch.nn.Module) -> None:
    import mlx.core as mx

    tensors: dict[str, Any] = dict(made.exported.constants)
    tensors |= dict(module.named_buffers(remove_duplicate=False))
    tensors |= dict(module.named_parameters(remove_duplicate=False))
    arrays = {}
    for name, stored in made.generated.weights.items():
        tensor = tensors[stored.source]
        arrays[name] = mlx_array(tensor if stored.axes is None else tensor.permute(stored.axes))
    mx.save_safetensors(str(file), arrays, metadata={"format": "mlx"})


def _readme(made: Compilation, agreement: Agreement, quantized: Quantized | None) -> str:
    generated = made.generated
    given = ", ".join(a.name for a in generated.arguments)
    shapes = "\n".join(f"- `{i.name}`: {i.type}" for i in made.graph.inputs)
    stored = ""
    if quantized is not None:
        stored = (
            f"\nThen quantized to {quantized.assignment.base}, which moves the outputs by "
            f"{quantized.drift:.1e} on the example.\n"
        )
    return f"""# {generated.class_name} for MLX

```python
from model import load

model = load(".")
outputs = model({given})
```

Inputs:
{shapes}

Compared with PyTorch on: {"; ".join(agreement.cases)}. Largest relative L2 error
{agreement.worst:.1e}, limit {agreement.limit:.0e}.
{stored}"""
