"""The frozen plan of a conversion: what will be written, from what, where, and why.

Everything is decided from headers and configs; a plan holds no tensor and can be printed,
compared and executed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch2mlx.architectures.port import Port, PortMapping, Target
from torch2mlx.dtypes import DTYPES, DType, parse_dtype
from torch2mlx.errors import OptionError
from torch2mlx.planning.expressions import Expr, sources_of
from torch2mlx.planning.functions import cast, whole_bytes
from torch2mlx.planning.grids import StoredGrids
from torch2mlx.planning.shards import ShardPlan, TensorSpec, plan_shards
from torch2mlx.quantization.recipe import (
    ROUTER_BY_DEFAULT,
    Assignment,
    QuantOptions,
    QuantTarget,
    assign_schemes,
)
from torch2mlx.quantization.scheme import Scheme
from torch2mlx.sources.base import Checkpoint, Packed

__all__ = [
    "DEFAULT_SHARD_SIZE",
    "FLOAT_DTYPES",
    "Output",
    "Plan",
    "build_plan",
    "choose_dtype",
    "is_output_head",
    "is_token_embedding",
    "output_specs",
]

DEFAULT_SHARD_SIZE = 5 * 10**9  # bytes
FLOAT_DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Output:
    """One parameter of the MLX model and the tensors it is written as.

    Attributes:
        name: parameter path, ending in ".weight" where it is quantized.
        expr: its values in the final dtype, before quantization.
        scheme: how it is quantized, or None.
        packed: the stored grid that is taken over without loss, or None.
        calibrated: expressions of the tensors that calibration found, by the suffix of their
            name, or None.
        specs: the tensors written: one, or weight, scales and (affine) biases.
        finite: NaN and Inf are errors; not so in the masks that modules keep as buffers.
    """

    name: str
    expr: Expr
    scheme: Scheme | None
    packed: Packed | None
    specs: tuple[TensorSpec, ...]
    calibrated: Mapping[str, Expr] | None = None
    finite: bool = True

    @property
    def module(self) -> str:
        """Path of the module that owns the parameter."""
        return self.name.rpartition(".")[0]

    @property
    def parts(self) -> Mapping[str, Expr] | None:
        """Expressions of the tensors as they are written, by the suffix of their name, where
        they exist before the conversion: calibrated, or taken over from a stored grid.
        """
        if self.calibrated is not None or self.packed is None:
            return self.calibrated
        return self.packed.parts


@dataclass(frozen=True)
class Plan:
    """What a conversion will do.

    Attributes:
        outputs: in the port's order.
        shards: the files, with every byte offset.
        dtype: of the floating-point tensors that are not quantized; None keeps each one's own.
        config: the port's config, without quantization.
        quantization: the `quantization` entry of config.json, or None.
        assignment: which module is quantized how and why, or None.
        dropped: checkpoint tensors that are not written, with the reason.
        notes: what a user should know.
    """

    outputs: tuple[Output, ...]
    shards: tuple[ShardPlan, ...]
    dtype: DType | None
    config: Mapping[str, Any]
    quantization: Mapping[str, Any] | None
    assignment: Assignment | None
    dropped: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of the finished weight files."""
        return sum(shard.nbytes for shard in self.shards)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each weight, file headers not counted."""
        stored = sum(spec.nbytes for output in self.outputs for spec in output.specs)
        return 8 * stored / max(1, self.parameters)

    @property
    def parameters(self) -> int:
        """Number of weights before quantization."""
        return sum(output.expr.size for output in self.outputs)


_EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "embeddings", "word_embeddings", "embedding")


def is_output_head(name: str) -> bool:
    """Whether a tensor is the matrix that makes logits, by the names in use."""
    return name.endswith(("lm_head.weight", "embed_out.weight"))


def is_token_embedding(name: str) -> bool:
    """Whether a tensor is the table of token embeddings, by the names in use."""
    module, _, leaf = name.rpartition(".")
    last = module.rpartition(".")[2]
    return (
        leaf == "weight" and last in _EMBEDDINGS and not any(p.isdigit() for p in name.split("."))
    )


def choose_dtype(config: Mapping[str, Any], requested: str | None) -> DType | None:
    """The dtype of unquantized floating-point tensors.

    `requested` wins; then config.json's `torch_dtype` or `dtype`, nested text config included,
    where it is one that MLX computes in; else None: every tensor keeps its own.

    Raises:
        OptionError: the requested dtype is not one of `FLOAT_DTYPES`.
    """
    if requested is not None:
        if requested not in FLOAT_DTYPES:
            raise OptionError(f"--dtype {requested}: choose one of {', '.join(FLOAT_DTYPES)}")
        return parse_dtype(requested)
    text = config.get("text_config")
    nested = text if isinstance(text, Mapping) else {}
    for name in (
        config.get("torch_dtype"), config.get("dtype"),
        nested.get("torch_dtype"), nested.get("dtype"),
    ):  # fmt: skip
        if isinstance(name, str) and name.removeprefix("torch.") in FLOAT_DTYPES:
            return parse_dtype(name)
    return None


def build_plan(
    checkpoint: Checkpoint,
    port: Port,
    *,
    dtype: str | None = None,
    quantize: QuantOptions | None = None,
    keep_grids: bool = False,
    max_shard_size: int = DEFAULT_SHARD_SIZE,
    mapping: PortMapping | None = None,
) -> Plan:
    """Decide everything about a conversion from headers.

    Args:
        checkpoint: the opened source.
        port: the model class that its tensors become parameters of.
        dtype: of unquantized floating-point tensors (see `choose_dtype`).
        quantize: round-to-nearest quantization; None writes plain weights.
        keep_grids: modules that the source stores on a grid of MLX's keep it, where no rule
            singles them out, instead of the base format of `quantize`; those that a packed source
            holds in floating point stay so.
        max_shard_size: bytes a file may have at most, its header included.
        mapping: `port.map_state(checkpoint.state)`, where several plans share it.

    Raises:
        PlanError: tensors and model do not fit, or a tensor exceeds the shard size.
        OptionError: options that do not fit this model.
    """
    mapping = mapping or port.map_state(checkpoint.state)
    chosen = choose_dtype(checkpoint.config, dtype)
    assignment = _assign(port, quantize, chosen or DTYPES["BF16"]) if quantize else None
    grids = StoredGrids(checkpoint)
    if assignment and keep_grids:
        plain = {id(checkpoint.state[name]) for name in checkpoint.plain}
        assignment = _keep_grids(assignment, grids, port, mapping.outputs, plain)
    notes = list(checkpoint.notes)
    if mapping.integers:
        notes.append(
            f"matrices stored as whole numbers are taken as such ({len(mapping.integers)}, the "
            f"first: {mapping.integers[0]}); if these are codes, their scales are missing"
        )
    outputs = []
    for name, expr in mapping.outputs.items():
        target = port.targets[name]
        scheme = None
        if assignment and target.quantizable:
            scheme = assignment.schemes[target.module]
        packed = grids.of(expr, scheme)
        final = _in_final_dtype(expr, chosen, port, target)
        outputs.append(
            Output(name, final, scheme, packed, output_specs(name, final, scheme, packed))
        )
    repacked = sum(output.packed is not None for output in outputs)
    if repacked:
        notes.append(f"{repacked} tensors take over their stored grid without loss")
    whole = max((whole_bytes(o.expr) for o in outputs), default=0)
    if whole:
        notes.append(
            f"a function of this port needs whole tensors: up to {whole:,} bytes at once, whatever "
            "--memory-limit says"
        )
    if assignment:
        notes.extend(assignment.notes)
    return Plan(
        outputs=tuple(outputs),
        shards=tuple(plan_shards((o.specs for o in outputs), max_shard_size)),
        dtype=chosen,
        config=port.config,
        quantization=assignment.to_config() if assignment else None,
        assignment=assignment,
        dropped=mapping.dropped,
        notes=tuple(notes),
    )


def _assign(port: Port, options: QuantOptions, dtype: DType) -> Assignment:
    targets = [
        QuantTarget(
            path=target.module,
            kind=target.kind,
            shape=target.shape,
            port_choice=port.quantization_choice(target.module),
        )
        for target in port.targets.values()
        if target.quantizable
    ]
    return assign_schemes(targets, options, layers=port.layer_count, dtype=dtype)


def _keep_grids(
    assignment: Assignment,
    grids: StoredGrids,
    port: Port,
    outputs: Mapping[str, Expr],
    plain: set[int],
) -> Assignment:
    """Give modules at the base format their stored grid, and name the commonest grid as base.

    Args:
        assignment: by the options alone.
        grids: what is stored on one.
        port: the targets.
        outputs: their expressions.
        plain: ids of the tensors that stay as they are.
    """
    stored = {
        target.module: grids.scheme_of(outputs[target.name])
        for target in port.targets.values()
        if target.quantizable and assignment.schemes[target.module] == assignment.base
    }
    counts = Counter(scheme for scheme in stored.values() if scheme is not None)
    if not counts:
        return assignment
    base = counts.most_common(1)[0][0]
    by_default = {p for p, why in assignment.reasons.items() if why == ROUTER_BY_DEFAULT}
    left = {
        target.module
        for target in port.targets.values()
        if target.quantizable
        and (target.module in stored or target.module in by_default)
        and all(id(leaf) in plain for leaf in sources_of(outputs[target.name]))
    }
    schemes = {
        path: None if path in left else (stored[path] or base) if path in stored else scheme
        for path, scheme in assignment.schemes.items()
    }
    kept = {path: "as the file stores it" for path, scheme in stored.items() if scheme is not None}
    reasons = {
        path: "in floating point, as in the source"
        if path in left
        else {**assignment.reasons, **kept}.get(path, "as chosen")
        for path, scheme in schemes.items()
        if scheme != base
    }
    return replace(assignment, base=base, schemes=schemes, reasons=reasons)


def _in_final_dtype(expr: Expr, chosen: DType | None, port: Port, target: Target) -> Expr:
    if not expr.dtype.floating:
        return expr
    if expr.dtype.mx_name is None:  # fp8: MLX has no such array
        return cast(expr, chosen or DTYPES["BF16"])
    if chosen is None or port.keeps_dtype(target.name):
        return cast(expr, DTYPES["F32"]) if expr.dtype.name == "F64" else expr
    return cast(expr, chosen)


def output_specs(
    name: str, expr: Expr, scheme: Scheme | None, packed: Packed | None
) -> tuple[TensorSpec, ...]:
    """The tensors that a parameter is written as."""
    if scheme is None:
        return (TensorSpec(name, expr.dtype, expr.shape),)
    module = name.removesuffix("weight")
    dtype = packed.scales.dtype if packed and scheme.affine else expr.dtype
    layout = scheme.layout(expr.shape, dtype)
    return tuple(TensorSpec(module + part, d, shape) for part, (d, shape) in layout.items())
