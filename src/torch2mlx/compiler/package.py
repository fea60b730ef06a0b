"""From a module to code, weights and the proof that they equal the original."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2mlx.compiler.codegen import GeneratedModel, generate
from torch2mlx.compiler.dimensions import dimension_names
from torch2mlx.compiler.entry_points import CompiledEntry, EntryPoint, Exported, check_methods
from torch2mlx.compiler.export import decomposed, export_or_guess
from torch2mlx.compiler.folding import without_weight_norm
from torch2mlx.compiler.host import Host
from torch2mlx.compiler.lowering.registry import registered
from torch2mlx.compiler.passes import optimized
from torch2mlx.compiler.prepared import Extras, Prepared
from torch2mlx.compiler.program import build_programs
from torch2mlx.compiler.publish import CompiledModule, publish
from torch2mlx.compiler.reading import build_graph, standing_names, unknown_operators
from torch2mlx.compiler.weights import (
    check_names,
    checkpoint_state,
    in_names_of,
    module_state,
)
from torch2mlx.errors import CompileError, OptionError, UnsupportedError
from torch2mlx.options import ConvertOptions
from torch2mlx.packaging.staging import check_destination
from torch2mlx.progress import Progress, Silent
from torch2mlx.sources.base import Checkpoint

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
    "dimension_names",
    "prepare_exported",
    "prepare_module",
    "tied_names",
]

_PLACE = re.compile(r"\S+:\d+")
"""file:line in a reason."""


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


def compile_entries(
    module: torch.nn.Module,
    points: Sequence[EntryPoint],
    dtype: str | None = None,
    host: Host | None = None,
) -> Compilation:
    """Export, lower and generate methods of one module, without reading a weight.

    Args:
        module: may be on the meta device.
        points: methods and their examples.
        dtype: that all floating-point weights and inputs are to have; None: their own.
        host: what joins the methods.

    Raises:
        CompileError: with every reason of every method at once.
        OptionError: the module has no method of a name.
    """
    import torch

    check_methods(module, [p.method for p in points])
    name = type(module).__qualname__.rpartition(".")[2]
    exported: list[tuple[EntryPoint, EntryPoint, Exported]] = []
    reasons: list[str] = []
    kind = getattr(torch, dtype) if dtype else None
    cast = [p if kind is None else p.cast(kind) for p in points]
    for p in cast:
        program, found = export_or_guess(module, p.args, p.kwargs, p.dynamic_shapes, p.method, kind)
        reasons += found
        if program is not None:
            exported.append((p, points[cast.index(p)], program))
    if not reasons:
        return _lower(exported, module, name, host)
    for *_, program in exported:
        reasons += _further(program.program, reasons)
    raise CompileError(name, list(dict.fromkeys(reasons)))


def _further(program: ExportedProgram, reasons: Sequence[str]) -> list[str]:
    """What else is wrong with a guessed program; at lines that are told already it is the guess."""
    told = {place for reason in reasons for place in _PLACE.findall(reason)}
    found = []
    try:
        build_graph(program)
    except CompileError as error:
        for reason in error.reasons:
            places = set(_PLACE.findall(reason))
            if not places & told:
                found.append(reason)
                told |= places
    return [*found, *unknown_operators(program, registered())]


def _lower(
    exported: Sequence[tuple[EntryPoint, EntryPoint, Exported]],
    module: torch.nn.Module,
    name: str,
    host: Host | None = None,
) -> Compilation:
    standing = standing_names([found.program for *_, found in exported], tied_names(module))
    constants: dict[str, torch.Tensor] = {}
    graphs: list[Graph] = []
    renamed: list[Mapping[str, str]] = []
    reasons: list[str] = []
    for point, _, found in exported:
        program = found.program
        names = {**standing, **_constant_names(program, point.method, constants)}
        renamed.append(names)
        try:
            dims = dimension_names(program, point.dynamic_shapes)
            graph = build_graph(program, name, names, dims, point.method, found.questions)
            graphs.append(_frozen(graph, point, found, names, constants))
        except CompileError as error:
            reasons += [*error.reasons, *unknown_operators(program, registered())]
    if reasons:
        raise CompileError(name, list(dict.fromkeys(reasons)))
    programs = [optimized(program) for program in build_programs(graphs)]
    entries = tuple(
        CompiledEntry(
            point, original, found.program, graph, program, _known(found, names, constants)
        )
        for (point, original, found), names, graph, program in zip(
            exported, renamed, graphs, programs, strict=True
        )
    )
    return Compilation(entries, generate(*programs, host=host), constants)


def _frozen(
    graph: Graph,
    point: EntryPoint,
    found: Exported,
    names: Mapping[str, str],
    constants: dict[str, torch.Tensor],
) -> Graph:
    """The graph for the example's values, where it asks for them; adds the new constants."""
    from torch2mlx.compiler.specialization import frozen, input_values

    if not found.questions:
        return graph
    known = _known(found, names, constants)
    graph, more = frozen(graph, input_values(graph, point.leaves), known)
    constants.update(more)
    return graph


def _known(
    found: Exported, names: Mapping[str, str], constants: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Values that answers followed from beside the inputs, by the graph's names."""
    if not found.questions:
        return {}
    return {names.get(k, k): v for k, v in {**found.buffers, **constants}.items()}


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
    *,
    original: torch.nn.Module | None = None,
    entry_points: Sequence[EntryPoint] = (),
    weights: Checkpoint | None = None,
    options: ConvertOptions | None = None,
    progress: Progress | None = None,
    location: str = "",
    seed: int = 0,
    extras: Extras | None = None,
) -> CompiledModule:
    """Write a module's MLX code and weights, compared with PyTorch before they appear.

    Args:
        module: compiled as it stands, so call `eval()` first; of weights in memory, those with a
            weight norm become plain ones.
        destination: folder to create.
        example_inputs: positional arguments of `forward`.
        example_kwargs: keyword arguments of `forward`.
        dynamic_shapes: as for `torch.export.export`; other extents are fixed.
        original: what the result is compared with, where the module was made from it (TorchScript).
        entry_points: methods to compile, in place of `forward` and its example.
        weights: where the values of parameters and persistent buffers are; None: in the module.
        options: dtype, quantization, shards, memory, verification.
        progress: listener.
        location: what the user calls the module, for the manifest.
        seed: of the fresh inputs.
        extras: what the folder has besides.

    Raises:
        CompileError: with all reasons why the module has no exact counterpart in MLX.
        DestinationError: the destination exists or cannot be written.
        NumericError: NaN, Inf or overflow in a parameter.
        ParityError: an output differs from PyTorch's; nothing is published.
        PlanError: the checkpoint's names or shapes are not the module's.
    """
    points = list(entry_points) or [
        EntryPoint("forward", tuple(example_inputs), example_kwargs or {}, dynamic_shapes)
    ]
    check_destination(destination)  # before the longer work of compiling
    prepared = prepare_module(
        module,
        points,
        original=original,
        weights=weights,
        options=options or ConvertOptions(),
        location=location,
        extras=extras or Extras(),
    )
    return publish(destination, prepared, progress or Silent(), seed)


def prepare_module(
    module: torch.nn.Module,
    points: Sequence[EntryPoint],
    *,
    original: torch.nn.Module | None = None,
    weights: Checkpoint | None = None,
    options: ConvertOptions,
    location: str,
    extras: Extras,
) -> Prepared:
    """Compile a module and write nothing; arguments and errors as of `compile_module`."""
    for point in points if options.verify else ():
        _require_values(point)
    if weights is None:
        _require_data(module)
        plain = without_weight_norm(module)
        if plain is not None:
            original, module = original or module, plain
    else:
        weights = in_names_of(module, weights)
        check_names(module, weights)
    made = compile_entries(module, points, options.dtype, extras.host)
    if weights is None:
        name = location or f"{type(module).__module__}.{type(module).__qualname__}"
        state = module_state(module, made.constants, name, "module")
    else:
        state = checkpoint_state(module, made.constants, weights)
    compared = module if original is None else original
    return Prepared(made.generated, made.entries, state, compared, options, extras)


def _require_values(point: EntryPoint) -> None:
    """The comparison runs the example, so it cannot be on the meta device."""
    import torch
    from torch.utils import _pytree as pytree

    leaves = pytree.tree_leaves((point.args, point.kwargs))
    if any(isinstance(leaf, torch.Tensor) and leaf.device.type == "meta" for leaf in leaves):
        raise OptionError(
            f"the example of {point.method} is on the meta device and has no values; give a tensor "
            "with values, or call compile_source for the code alone"
        )


def _require_data(module: torch.nn.Module) -> None:
    import torch

    quantized = [
        f"{path} ({type(inner).__name__})"
        for path, inner in module.named_modules()
        if re.match(r"torch\.ao\.nn\.(\w+\.)*quantized\.", type(inner).__module__)
    ]
    if quantized:
        raise UnsupportedError(
            f"{type(module).__name__}: {', '.join(quantized[:3])}: quantized by torch.ao, for "
            "kernels of PyTorch; give the module as it was before, with -q to quantize it for MLX"
        )
    state = {n: v for n, v in module.state_dict().items() if isinstance(v, torch.Tensor)}
    on_meta = [n for n, p in state.items() if p.device.type == "meta"]
    if on_meta:
        raise OptionError(
            f"{type(module).__name__}: {len(on_meta)} weights have no data (e.g. {on_meta[0]} is "
            "on the meta device); name a checkpoint with --weights (weights=... in Python), or "
            "call compile_source for the code alone"
        )


def compile_exported(
    program: ExportedProgram,
    destination: str | Path,
    *,
    options: ConvertOptions | None = None,
    progress: Progress | None = None,
    location: str = "an exported program",
    seed: int = 0,
) -> CompiledModule:
    """Write the MLX code and weights of what `torch.export` made, on its own example.

    Raises:
        CompileError, DestinationError, ParityError: as `compile_module`.
    """
    check_destination(destination)
    prepared = prepare_exported(program, options or ConvertOptions(), location)
    return publish(destination, prepared, progress or Silent(), seed)


def prepare_exported(program: ExportedProgram, options: ConvertOptions, location: str) -> Prepared:
    """Compile what `torch.export` made and write nothing; errors as of `compile_exported`."""
    assert program.example_inputs is not None
    args, kwargs = program.example_inputs
    module = program.module()
    point = EntryPoint("forward", tuple(args), kwargs)
    exported = Exported(decomposed(program))
    made = _lower([(point, point, exported)], module, _root_name(program))
    state = module_state(module, made.constants, location, "exported program")
    return Prepared(made.generated, made.entries, state, module, options)


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
