"""A module that is compiled and not written: its code, the values, and what it is held against."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from torch2mlx.compiler.codegen import GeneratedModel
from torch2mlx.compiler.documents import fixed_notes, model_config
from torch2mlx.compiler.entry_points import CompiledEntry
from torch2mlx.compiler.host import Host
from torch2mlx.compiler.loading import with_loader
from torch2mlx.compiler.parity import import_model
from torch2mlx.compiler.proof import Sides
from torch2mlx.compiler.quantize import assign
from torch2mlx.compiler.weights import WeightState, plan_weights, weight_expressions
from torch2mlx.options import ConvertOptions
from torch2mlx.planning.plan import Plan
from torch2mlx.planning.shards import parse_size

if TYPE_CHECKING:
    import torch

__all__ = ["Extras", "Prepared"]


@dataclass(frozen=True)
class Extras:
    """What a folder has besides code and weights.

    Attributes:
        settings: further entries of config.json.
        files: to be copied byte for byte, by their name in the folder.
        host: what joins the methods of the model.
        notes: what a user should know.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    host: Host | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Prepared:
    """What the compiler made of a module.

    Attributes:
        generated: code and list of weights.
        entries: each method, with its example.
        weights: values of the weights.
        module: the original, for the comparison; given the values of `weights` meanwhile if it
            has none.
        options: dtype, quantization, shards, memory, verification.
        extras: what the folder has besides.
    """

    generated: GeneratedModel
    entries: Sequence[CompiledEntry]
    weights: WeightState
    module: torch.nn.Module
    options: ConvertOptions
    extras: Extras = field(default_factory=Extras)

    @cached_property
    def sides(self) -> Sides:
        """Both models, to be compared."""
        return Sides(self.generated, self.entries, self.weights, self.module, self.extras.host)

    def plan(self, options: ConvertOptions) -> Plan:
        """Every tensor that is written with these options.

        Raises:
            OptionError: nothing can be quantized, or a pattern fits no module.
        """
        weights = {w.name: w for entry in self.entries for w in entry.graph.weights}
        stored = self.generated.weights
        quantize = options.quant_options()
        expressions = weight_expressions(self.generated, weights, self.weights.tensors)
        assignment = None
        if quantize is not None:
            with TemporaryDirectory() as scratch:
                (Path(scratch) / "model.py").write_text(self.generated.source, encoding="utf-8")
                classes = import_model(Path(scratch))
            model = getattr(classes, self.generated.class_name)()
            dtypes = Counter(e.dtype for e in expressions.values() if e.dtype.floating)
            assignment = assign(model, quantize, *(dtype for dtype, _ in dtypes.most_common(1)))
        kinds = {name: weights[s.source].kind for name, s in stored.items()}
        return plan_weights(
            expressions,
            assignment=assignment,
            unchecked={name for name, kind in kinds.items() if kind != "parameter"},
            max_shard_size=parse_size(options.max_shard_size),
            notes=(*self.weights.notes, *fixed_notes(self.entries), *self.extras.notes),
        )

    def code(self, plan: Plan) -> str:
        """model.py."""
        return with_loader(
            self.generated.source,
            self.generated.class_name,
            sharded=len(plan.shards) > 1,
            quantized=plan.assignment is not None,
        )

    def config(self, plan: Plan) -> str:
        """config.json."""
        settings = self.extras.settings
        config: dict[str, Any] = model_config(self.generated, self.entries, plan, settings)
        return json.dumps(config, indent=2) + "\n"
