"""Weights of a generated model as a plan, whose expressions are read from wherever they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torch2mlx.compiler.codegen import GeneratedModel
from torch2mlx.compiler.graph import Weight
from torch2mlx.dtypes import dtype_from_torch, to_torch
from torch2mlx.errors import PlanError
from torch2mlx.planning.expressions import Expr, Source, Transpose
from torch2mlx.planning.functions import cast
from torch2mlx.planning.plan import DEFAULT_SHARD_SIZE, Output, Plan, output_specs
from torch2mlx.planning.regions import full
from torch2mlx.planning.shards import plan_shards
from torch2mlx.sources.base import Checkpoint, TensorSource
from torch2mlx.sources.in_memory import MemorySource
from torch2mlx.sources.joined import JoinedSource
from torch2mlx.sources.prefix import without_prefix

if TYPE_CHECKING:
    import torch

    from torch2mlx.quantization.recipe import Assignment

__all__ = [
    "WeightState",
    "check_names",
    "checkpoint_state",
    "in_names_of",
    "module_state",
    "plan_weights",
    "values_digest",
    "weight_expressions",
    "weights_of",
]

_BLOCK = 8 << 20  # bytes that are hashed at a time


@dataclass(frozen=True)
class WeightState:
    """The values of a module's weights, by its own names.

    Attributes:
        tensors: as expressions over `source`.
        source: where they are read.
        location, kind: for the manifest.
        folder: of its files.
        notes: what a user should know.
    """

    tensors: Mapping[str, Expr]
    source: TensorSource
    location: str
    kind: str
    folder: Path = field(default_factory=Path)
    notes: tuple[str, ...] = ()


def named_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers under all of their names."""
    return {
        **dict(module.named_buffers(remove_duplicate=False)),
        **dict(module.named_parameters(remove_duplicate=False)),
    }


def module_state(
    module: torch.nn.Module, constants: Mapping[str, torch.Tensor], location: str, kind: str
) -> WeightState:
    """The weights that a module holds, and constants of its program; nothing is copied.

    Raises:
        SourceError: weights without data, or of a type that MLX lacks; names all.
    """
    source = MemorySource({**constants, **named_tensors(module)})
    return WeightState(_sources(source), source, location, kind)


def checkpoint_state(
    module: torch.nn.Module, constants: Mapping[str, torch.Tensor], checkpoint: Checkpoint
) -> WeightState:
    """The weights of a module as a checkpoint has them; what no checkpoint holds (constants,
    buffers that are not persistent) comes from the module.

    Args:
        module: its parameters need no data.
        constants: of its program.
        checkpoint: tensors under the names of `module.state_dict()`.

    Raises:
        PlanError: names that are missing, unexpected or of another shape, all at once.
            Also where it has several values for one tensor of the module.
        SourceError: what only the module can hold has no data either.
    """
    check_names(module, checkpoint)
    own = module.state_dict(keep_vars=True)
    tied: dict[int, str] = {}
    for name in (name for name in own if name in checkpoint.state):
        first = tied.setdefault(id(own[name]), name)
        _require_same(name, first, checkpoint)
    inside: dict[str, torch.Tensor] = {}
    tensors: dict[str, Expr] = {}
    for name, tensor in {**constants, **named_tensors(module)}.items():
        stored = name if name in own and name in checkpoint.state else tied.get(id(tensor))
        if stored is None:
            inside[f"{name} (made by the module)"] = tensor
        else:
            tensors[name] = checkpoint.state[stored]
    memory = MemorySource(inside)
    tensors |= {
        name.removesuffix(" (made by the module)"): expr for name, expr in _sources(memory).items()
    }
    return WeightState(
        tensors,
        JoinedSource(checkpoint.source, memory),
        checkpoint.location,
        checkpoint.kind,
        checkpoint.folder,
        checkpoint.notes,
    )


def _require_same(name: str, first: str, checkpoint: Checkpoint) -> None:
    if name == first:
        return
    from torch2mlx.verification.audit import check_tied

    state = checkpoint.state
    if not check_tied(name, state[name], first, state[first], checkpoint.source).ok:
        raise PlanError(
            f"{checkpoint.location}: {name} has other values than {first}, but they are one tensor "
            "in the module; untie them there, or remove the one that is not meant from the file"
        )


def _sources(source: TensorSource) -> dict[str, Expr]:
    return {n: Source(n, info.dtype, info.shape) for n, info in source.tensors.items()}


def in_names_of(module: torch.nn.Module, checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint under the names of a module, where every name of it has one prefix more."""
    own = module.state_dict()
    return without_prefix(checkpoint, lambda state: any(name in own for name in state))


def check_names(module: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Raise PlanError unless a checkpoint has exactly the tensors of a module."""
    own, state = module.state_dict(keep_vars=True), checkpoint.state
    stored = {id(own[name]) for name in own if name in state}
    problems = [
        f"missing: {name} {list(tensor.shape)}"
        for name, tensor in own.items()
        if name not in state and id(tensor) not in stored
    ]
    problems += [
        f"unexpected: {name} {list(state[name].shape)}" for name in state if name not in own
    ]
    problems += [
        f"{name}: expected {list(tensor.shape)}, found {list(state[name].shape)}"
        for name, tensor in own.items()
        if name in state and tuple(tensor.shape) != tuple(state[name].shape)
    ]
    if problems:
        listing = "".join(f"\n  - {problem}" for problem in problems)
        raise PlanError(
            f"{checkpoint.location}: not the weights of {type(module).__name__} (names and shapes "
            f"must be those of its state_dict()):{listing}"
        )


def weight_expressions(
    generated: GeneratedModel, weights: Mapping[str, Weight], state: Mapping[str, Expr]
) -> dict[str, Expr]:
    """What each tensor of a generated model is made of.

    Args:
        generated: knows the source of each, and the order of its axes.
        weights: of its graphs, by name; the values get the dtype that the graph computes with.
        state: the module's tensors.
    """
    found = {}
    for name, stored in generated.weights.items():
        expr = state[stored.source]
        if stored.axes is not None:
            expr = Transpose(expr, stored.axes)
        # Casts come last, where overflow is told from NaN.
        found[name] = cast(expr, dtype_from_torch(weights[stored.source].type.dtype))
    return found


def values_digest(source: TensorSource) -> str | None:
    """SHA-256 of every tensor that is in no file, of its name, type and values; None: all are.

    A later run can then tell whether its module is the same.
    """
    files = set(source.files)
    digest, found = hashlib.sha256(), False
    for name, info in sorted(source.tensors.items()):
        if info.file in files:
            continue
        found = True
        digest.update(f"{name} {info.dtype.name} {info.shape}\n".encode())
        rows = info.shape[0] if info.shape else 0
        step = max(1, _BLOCK * rows // max(info.nbytes, 1))
        for start in range(0, rows, step):
            values = source.read(name, start, min(start + step, rows))
            digest.update(np.ascontiguousarray(values).data)
        if not info.shape:
            digest.update(source.read(name).tobytes())
    return digest.hexdigest() if found else None


def plan_weights(
    expressions: Mapping[str, Expr],
    *,
    assignment: Assignment | None = None,
    unchecked: Collection[str] = (),
    max_shard_size: int = DEFAULT_SHARD_SIZE,
    config: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Plan:
    """The plan that writes a generated model's weights.

    Args:
        expressions: parameter path → its values in the final dtype.
        assignment: how layers are quantized, by path; None: not at all.
        unchecked: paths that may hold NaN and Inf, as masks do.
        max_shard_size: bytes a file may have at most, its header included.
        config: of the model, for the record.
        notes: what a user should know.

    Raises:
        PlanError: a tensor exceeds the shard size.
    """
    outputs = []
    for name, expr in expressions.items():
        owner, _, leaf = name.rpartition(".")
        scheme = assignment.schemes.get(owner) if assignment and leaf == "weight" else None
        specs = output_specs(name, expr, scheme, None)
        outputs.append(Output(name, expr, scheme, None, specs, finite=name not in unchecked))
    return Plan(
        outputs=tuple(outputs),
        shards=tuple(plan_shards((o.specs for o in outputs), max_shard_size)),
        dtype=None,
        config=config or {},
        quantization=assignment.to_config() if assignment else None,
        assignment=assignment,
        dropped={},
        notes=(*notes, *(assignment.notes if assignment else ())),
    )


@contextmanager
def weights_of(module: torch.nn.Module, weights: WeightState) -> Iterator[None]:
    """While it lasts, the module holds the values of `weights`, in its own dtypes.

    A module that holds them anyway is left alone.
    """
    import torch

    if not weights.source.files:
        yield
        return
    replaced = []
    made: dict[int, torch.Tensor] = {}
    for path, inner in module.named_modules():
        for held in (inner._parameters, inner._buffers):
            for name, tensor in held.items():
                expr = weights.tensors.get(f"{path}.{name}" if path else name)
                if tensor is None or expr is None:
                    continue
                replaced.append((held, name, tensor))
                if id(tensor) not in made:
                    bits = expr.read(full(expr.shape), weights.source)
                    value = to_torch(bits, expr.dtype).to(tensor.dtype)
                    if isinstance(tensor, torch.nn.Parameter):
                        value = torch.nn.Parameter(value, requires_grad=False)
                    made[id(tensor)] = value
    for held, name, tensor in replaced:
        held[name] = made[id(tensor)]
    try:
        yield
    finally:
        for held, name, tensor in replaced:
            held[name] = tensor
