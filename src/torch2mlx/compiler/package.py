"""A module as a folder: code, weights, and the proof that they equal the original."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2mlx.compiler.codegen import GeneratedModel, generate
from torch2mlx.compiler.codegen.tree import method_name
from torch2mlx.compiler.dimensions import dimension_names
from torch2mlx.compiler.entry_points import CompiledEntry, EntryPoint, check_methods
from torch2mlx.compiler.export import export_module
from torch2mlx.compiler.graph import build_graph, single_precision, standing_names
from torch2mlx.compiler.parity import Agreement, call_model, check_parity, mlx_array
from torch2mlx.compiler.passes import optimized
from torch2mlx.compiler.program import build_programs
from torch2mlx.compiler.quantize import Quantized, quantize_folder
from torch2mlx.errors import CompileError, OptionError
from torch2mlx.packaging.staging import Staging
from torch2mlx.quantization.recipe import QuantOptions

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from torch2mlx.compiler.graph import Graph
    from torch2mlx.compiler.program import Program

__all__ = [
    "Compilation",
    "CompiledModule",
    "compile_entries",
    "compile_exported",
    "compile_module",
    "compile_source",
]


@dataclass(frozen=True, eq=False)
class Compilation:
    """A module's methods at every stage, weights not read.

    Attributes:
        entries: one for each method.
        generated: source and list of weights.
        constants: tensors that are neither parameters nor buffers, by name.
    """

    entries: tuple[CompiledEntry, ...]
    generated: GeneratedModel
    constants: Mapping[str, torch.Tensor]

    @property
    def exported(self) -> ExportedProgram:
        """Of the first method."""
        return self.entries[0].exported

    @property
    def graph(self) -> Graph:
        """Of the first method."""
        return self.entries[0].graph

    @property
    def program(self) -> Program:
        """Of the first method."""
        return self.entries[0].program

    @property
    def operators(self) -> int:
        """Number of ATen calls."""
        return sum(len(entry.graph.nodes) for entry in self.entries)


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
    """Export, lower and generate `forward`, without reading a weight; modules on meta will do.

    Raises:
        CompileError: with every reason at once.
    """
    point = EntryPoint("forward", tuple(example_inputs), example_kwargs or {}, dynamic_shapes)
    return compile_entries(module, [point])


def compile_entries(module: torch.nn.Module, points: Sequence[EntryPoint]) -> Compilation:
    """Export, lower and generate methods of one module, without reading a weight.

    Raises:
        CompileError: with every reason of every method at once.
        OptionError: the module has no method of a name.
    """
    check_methods(module, [p.method for p in points])
    name = type(module).__qualname__.rpartition(".")[2]
    exported: list[ExportedProgram] = []
    reasons: list[str] = []
    for p in points:
        try:
            exported.append(export_module(module, p.args, p.kwargs, p.dynamic_shapes, p.method))
        except CompileError as error:
            reasons += error.reasons
    if reasons:
        raise CompileError(name, list(dict.fromkeys(reasons)))
    return _lower(list(zip(points, exported, strict=True)), module, name)


def _lower(
    exported: Sequence[tuple[EntryPoint, ExportedProgram]], module: torch.nn.Module, name: str
) -> Compilation:
    standing = standing_names([program for _, program in exported], tied_names(module))
    constants: dict[str, torch.Tensor] = {}
    graphs: list[Graph] = []
    reasons: list[str] = []
    for point, program in exported:
        names = {**standing, **_constant_names(program, point.method, constants)}
        try:
            dims = dimension_names(program, point.dynamic_shapes)
            graphs.append(build_graph(program, name, names, dims, point.method))
        except CompileError as error:
            reasons += error.reasons
    if reasons:
        raise CompileError(name, list(dict.fromkeys(reasons)))
    programs = [optimized(program) for program in build_programs(graphs)]
    entries = tuple(
        CompiledEntry(*pair, graph, program)
        for pair, graph, program in zip(exported, graphs, programs, strict=True)
    )
    return Compilation(entries, generate(*programs), constants)


def _constant_names(
    program: ExportedProgram, method: str, constants: dict[str, torch.Tensor]
) -> dict[str, str]:
    """Other names for constants that share theirs with another method's; adds them all."""
    import torch

    renamed = {}
    for name, value in program.constants.items():
        if not isinstance(value, torch.Tensor):
            continue
        if name in constants and not _equal(constants[name], value):
            renamed[name] = f"{name}_{method}"
        constants[renamed.get(name, name)] = value
    return renamed


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    import torch

    return a is b or (a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b))


def compile_module(
    module: torch.nn.Module,
    destination: str | Path,
    example_inputs: Sequence[Any] = (),
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    seed: int = 0,
    quantize: QuantOptions | None = None,
    entry_points: Sequence[EntryPoint] = (),
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
        entry_points: methods to compile, in place of `forward` and its example.

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
    points = list(entry_points) or [
        EntryPoint("forward", tuple(example_inputs), example_kwargs or {}, dynamic_shapes)
    ]
    with Staging(destination) as staging:
        made = compile_entries(module, points)
        return _publish(staging, made, module, seed, quantize)


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
        point = EntryPoint("forward", tuple(args), kwargs)
        made = _lower([(point, program.run_decompositions({}))], module, _root_name(program))
        return _publish(staging, made, module, seed, quantize)


def _publish(
    staging: Staging,
    made: Compilation,
    module: torch.nn.Module,
    seed: int,
    quantize: QuantOptions | None,
) -> CompiledModule:
    folder, generated = staging.folder, made.generated
    _write(folder, made, module)
    agreement = check_parity(folder, generated, made.entries, module, seed)
    quantized = None
    if quantize is not None:
        quantized = quantize_folder(
            folder, generated.class_name, quantize, lambda model: _examples(model, made)
        )
    (folder / "README.md").write_text(_readme(made, agreement, quantized), encoding="utf-8")
    return CompiledModule(
        staging.publish(), generated.class_name, made.operators, agreement, quantized
    )


def _examples(model: Any, made: Compilation) -> list[Any]:
    """Outputs of a model on the example of every method."""
    outputs = []
    for entry in made.entries:
        point, arguments = entry.point, made.generated.methods[entry.method]
        outputs += call_model(model, entry.method, arguments, point.args, point.kwargs)
    return outputs


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
    config: dict[str, Any] = {"model_class": generated.class_name}
    if len(made.entries) == 1:
        config["inputs"] = _inputs(made.entries[0])
    else:
        config["methods"] = {method_name(e.method): _inputs(e) for e in made.entries}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    _write_weights(folder / "model.safetensors", made, module)


def _inputs(entry: CompiledEntry) -> list[dict[str, Any]]:
    return [
        {
            "name": i.name,
            "dtype": str(i.type.dtype).removeprefix("torch."),
            "shape": [n if type(n) is int else repr(n) for n in i.type.shape],
        }
        for i in entry.graph.inputs
    ]


def _write_weights(file: Path, made: Compilation, module: torch.nn.Module) -> None:
    import mlx.core as mx

    tensors: dict[str, Any] = dict(made.constants)
    tensors |= dict(module.named_buffers(remove_duplicate=False))
    tensors |= dict(module.named_parameters(remove_duplicate=False))
    arrays = {}
    for name, stored in made.generated.weights.items():
        tensor = tensors[stored.source]
        tensor = tensor.to(single_precision(tensor.dtype))
        arrays[name] = mlx_array(tensor if stored.axes is None else tensor.permute(stored.axes))
    mx.save_safetensors(str(file), arrays, metadata={"format": "mlx"})


def _readme(made: Compilation, agreement: Agreement, quantized: Quantized | None) -> str:
    generated = made.generated
    calls = []
    for method, arguments in generated.methods.items():
        call = "" if method == "forward" else f".{method_name(method)}"
        calls.append(f"outputs = model{call}({', '.join(a.name for a in arguments)})")
    shapes = [f"- `{i.name}`: {i.type}" for e in made.entries for i in e.graph.inputs]
    stored = ""
    if quantized is not None:
        stored = (
            f"\nThen quantized to {quantized.assignment.base}, which moves the outputs by "
            f"{quantized.drift:.1e} on the example.\n"
        )
    newline = "\n"
    return f"""# {generated.class_name} for MLX

```python
from model import load

model = load(".")
{newline.join(calls)}
```

Inputs:
{newline.join(dict.fromkeys(shapes))}

Compared with PyTorch on: {"; ".join(agreement.cases)}. Largest relative L2 error
{agreement.worst:.1e}, limit {agreement.limit:.0e}.
{stored}"""
