"""What a user hears of a compiled folder, whichever part of the compiler made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch2mlx.audio.conversion import ConvertedKokoro
    from torch2mlx.compiler.pipelines.conversion import ConvertedPipeline
    from torch2mlx.compiler.publish import CompiledModule

__all__ = ["Compiled", "of_kokoro", "of_module", "of_pipeline"]


@dataclass(frozen=True)
class Compiled:
    """What the compiler made.

    Attributes:
        destination: the published folder; its URL where that is remote.
        model_class: name of the root class in its model.py.
        operators: number of ATen calls that were lowered.
        cases: inputs on which it was compared with PyTorch.
        error: largest relative L2 error there, before quantization; None: not compared.
        limit: that it had to keep, by the coarsest dtype.
        total_size: bytes of the weights.
        bits_per_weight: measured on the files.
        quantization: the entry of config.json, or None; of a pipeline by component.
        drift: relative L2 distance that quantization added on the example, or None.
        notes: what a user should know.
        parts: of a pipeline: component → largest error there, or None; each has a model.py.
        library: that loads the folder; None: its own model.py does.
    """

    destination: Path | str
    model_class: str
    operators: int
    cases: tuple[str, ...]
    error: float | None
    limit: float | None
    total_size: int
    bits_per_weight: float
    quantization: Mapping[str, Any] | None = None
    drift: float | None = None
    notes: tuple[str, ...] = ()
    parts: Mapping[str, float | None] = field(default_factory=dict)
    library: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "destination": str(self.destination)}


def of_module(made: CompiledModule) -> Compiled:
    """Of one model."""
    agreement, quantized = made.agreement, made.quantized
    weights = made.manifest.weights
    return Compiled(
        made.folder,
        made.class_name,
        made.operators,
        agreement.cases if agreement else (),
        agreement.worst if agreement else None,
        agreement.limit if agreement else None,
        int(weights["total_size"]),
        weights["bits_per_weight"],
        quantized.assignment.to_config() if quantized else None,
        quantized.drift if quantized else None,
        tuple(made.manifest.plan["notes"]),
    )


def of_pipeline(made: ConvertedPipeline) -> Compiled:
    """Of all models of a pipeline together."""
    weights = [m.weights for m in made.manifests.values()]
    size = sum(int(w["total_size"]) for w in weights)
    proofs = {n: m.verification for n, m in made.manifests.items()}
    errors = {n: p.get("error") for n, p in proofs.items()}
    compared = [p for p in proofs.values() if p.get("error") is not None]
    return Compiled(
        made.folder,
        made.name,
        made.operators,
        tuple(dict.fromkeys(case for p in compared for case in p["cases"])),
        max((p["error"] for p in compared), default=None),
        max((p["limit"] for p in compared), default=None),
        size,
        size / sum(int(w["total_size"]) / w["bits_per_weight"] for w in weights),
        made.quantization or None,
        notes=made.notes,
        parts=errors,
    )


def of_kokoro(made: ConvertedKokoro) -> Compiled:
    """Of a folder that mlx-audio loads."""
    weights, compared = made.manifest.weights, made.comparison
    return Compiled(
        made.folder,
        "Kokoro",
        0,
        tuple(dict.fromkeys(r.case for r in compared.records)) if compared else (),
        compared.worst if compared else None,
        max(r.limit for r in compared.records) if compared else None,
        int(weights["total_size"]),
        weights["bits_per_weight"],
        notes=made.notes,
        library="mlx-audio",
    )
