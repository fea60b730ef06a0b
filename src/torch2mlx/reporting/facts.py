"""Everything that a report says of a converted folder, read from its files and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch2mlx.benchmarking.rows import Benchmark
from torch2mlx.errors import SourceError
from torch2mlx.evidence.certificate import CERTIFICATE, Certificate, read_certificate
from torch2mlx.evidence.parsing import parse, parse_file, plain
from torch2mlx.evidence.record import FOLDER, Evidence, read_evidence
from torch2mlx.packaging.files import MANIFEST
from torch2mlx.packaging.manifest import Manifest, read_manifest
from torch2mlx.reporting.numbers import decimal, percent, scientific
from torch2mlx.sources.local_files import read_json_object

__all__ = ["BENCHMARK", "Facts", "Part", "Verdict", "Verified", "read_facts"]

BENCHMARK = f"{FOLDER}/bench.json"
"""Of a folder: what `torch2mlx bench --json` measured, if it is kept there."""

_LARGEST_BENCHMARK = 16 << 20  # bytes
_WEIGHTS = re.compile(r"\.(gguf|safetensors|bin|pth?)$", re.IGNORECASE)


@dataclass(frozen=True)
class Place:
    """One place of a comparison; see `torch2mlx.verification.report.LayerDifference`."""

    place: str
    relative: float | None


@dataclass(frozen=True)
class Part:
    """One comparison; see `torch2mlx.verification.report.Comparison`."""

    part: str
    passed: bool
    tokens: int
    tolerance: float
    logits: Place
    cached: Place | None = None
    top1: float | None = None
    layers: tuple[Place, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cost:
    """One budget; see `torch2mlx.verification.report.Budget`."""

    name: str
    passed: bool
    figures: Mapping[str, float | None]
    limits: Mapping[str, float]
    note: str = ""


@dataclass(frozen=True)
class Audit:
    """Summary of the tensor audit."""

    passed: bool
    tensors: int
    counts: Mapping[str, int]


@dataclass(frozen=True)
class Verified:
    """What a manifest says under "verification", for a checkpoint or a module.

    Attributes:
        passed: every check.
        comparisons, budgets, audit: of a checkpoint; modules have an audit too.
        cases, error, limit: of a module: inputs, largest relative L2 error, bound.
        skipped: part → reason, or true where nothing was compared.
    """

    passed: bool = False
    comparisons: tuple[Part, ...] = ()
    budgets: tuple[Cost, ...] = ()
    audit: Audit | None = None
    cases: tuple[str, ...] = ()
    error: float | None = None
    limit: float | None = None
    skipped: Any = None

    @property
    def ran(self) -> bool:
        """Something was compared."""
        return bool(self.comparisons or self.cases)

    @property
    def reasons(self) -> dict[str, str]:
        """Part → why it did not run."""
        skipped = self.skipped if isinstance(self.skipped, dict) else {}
        return {str(key): str(value) for key, value in skipped.items()}

    @property
    def worst(self) -> tuple[float | None, float | None]:
        """Largest relative L2 difference of any comparison, and its bound."""
        if self.cases:
            return self.error, self.limit
        values = [part.logits.relative for part in self.comparisons]
        if not values or None in values:
            return None, None
        limit = max(part.tolerance for part in self.comparisons)
        return max(v for v in values if v is not None), limit

    def cost(self, name: str) -> Mapping[str, float | None]:
        """Figures of a budget, none where it was not measured."""
        return next((b.figures for b in self.budgets if b.name == name), {})


@dataclass(frozen=True)
class Verdict:
    """What a reader should know first.

    Attributes:
        tone: "good", "warn" or "bad".
        headline: a few words.
        text: a sentence or two.
    """

    tone: str
    headline: str
    text: str


@dataclass(frozen=True)
class Facts:
    """A converted folder.

    Attributes:
        folder: as the user named it.
        title: name of the model.
        compiled: a module of its own, not a language model for mlx-lm.
        config: config.json.
        manifest: torch2mlx.json.
        verified: what was compared.
        evidence: figures beside the manifest, if the folder has them.
        certificate: if the folder has one.
        benchmark: speed, if it was measured.
    """

    folder: Path
    title: str
    compiled: bool
    config: Mapping[str, Any]
    manifest: Manifest
    verified: Verified
    evidence: Evidence = field(default_factory=Evidence)
    certificate: Certificate | None = None
    benchmark: Benchmark | None = None

    @property
    def architecture(self) -> str:
        """Model type or class."""
        return str(self.config.get("model_class") or self.config.get("model_type") or "unknown")

    @property
    def size(self) -> int:
        """Bytes of the weights."""
        return int(self.manifest.weights.get("total_size", 0))

    @property
    def parameters(self) -> int:
        """Their number."""
        return int(self.manifest.weights.get("total_parameters", 0))

    @property
    def bits(self) -> float | None:
        """Bits a weight, measured on the files."""
        return self.manifest.weights.get("bits_per_weight")

    @property
    def source_size(self) -> int | None:
        """Bytes of the source's weight files; None where it had none."""
        files = self.manifest.source.files
        sizes = [record.size for name, record in files.items() if _WEIGHTS.search(name)]
        return sum(sizes) or None

    @property
    def scheme(self) -> str:
        """How most weights are quantized; "" if they are not."""
        entry = self.config.get("quantization")
        if not isinstance(entry, dict) or "bits" not in entry:
            return ""
        mode = str(entry.get("mode", "affine"))
        named = "" if mode == "affine" else f" ({mode})"
        return f"{entry['bits']}-bit, groups of {entry.get('group_size')}{named}"

    @property
    def divergence(self) -> float | None:
        """Mean KL divergence from the original; 0 where nothing is quantized; None: unknown."""
        if not self.scheme:
            return 0.0 if self.verified.ran else None
        return self.verified.cost("quantization").get("mean_kl")

    @property
    def verdict(self) -> Verdict:
        """Equal, not compared, or different."""
        verified = self.verified
        if not verified.ran:
            return Verdict(
                "warn",
                "Not compared with PyTorch",
                "This folder was made with --no-verify: nothing is known about its outputs.",
            )
        worst, limit = verified.worst
        if not verified.passed:
            return Verdict(
                "bad", "Differs from PyTorch", "At least one check failed; do not use this folder."
            )
        equal = (
            f"MLX computes what PyTorch computes: relative L2 difference {scientific(worst)}, "
            f"limit {scientific(limit)}."
        )
        headline = "Equal to PyTorch before rounding" if self.scheme else "Equal to PyTorch"
        return Verdict("good", headline, f"{equal} {self._rounding()}".strip())

    def _rounding(self) -> str:
        """What quantization changed, beside the conversion."""
        cost = self.verified.cost("quantization")
        if not self.scheme:
            return ""
        start = f"Rounding to {self.scheme} then changes the predictions"
        if self.compiled:
            return f"Rounding to {self.scheme} then changes the outputs; the errors are below."
        if "mean_kl" not in cost:
            return f"{start}; by how much was not measured on text."
        return (
            f"{start}: mean KL divergence {decimal(cost['mean_kl'])} nats a token, the same most "
            f"likely token at {percent(cost.get('top1'))} of the positions."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        verdict = self.verdict
        return {
            "folder": str(self.folder),
            "title": self.title,
            "verdict": {"tone": verdict.tone, "headline": verdict.headline, "text": verdict.text},
            "architecture": self.architecture,
            "parameters": self.parameters,
            "size": self.size,
            "source_size": self.source_size,
            "bits_per_weight": self.bits,
            "quantization": self.scheme or None,
            "mean_kl": self.divergence,
            "verification": plain(self.verified),
            "evidence": plain(self.evidence),
            "measured": dict(self.manifest.measured),
            "benchmark": plain(self.benchmark) if self.benchmark is not None else None,
            "certificate": self.certificate.digest if self.certificate is not None else None,
            "notes": list(_texts(self.manifest.plan.get("notes"))),
            "created": self.manifest.created,
            "versions": dict(self.manifest.versions),
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know."""
        return _texts(self.manifest.plan.get("notes"))


def read_facts(folder: str | Path, benchmark: str | Path | None = None) -> Facts:
    """Read a converted folder; no weight is read and no code runs.

    Args:
        folder: what `convert` published.
        benchmark: a file of `torch2mlx bench --json`; None: the folder's, if it has one.

    Raises:
        SourceError: torch2mlx did not make the folder, or a file in it is damaged.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    config = read_json_object(folder / "config.json")
    verified = parse(Verified, manifest.verification, folder / MANIFEST)
    measured = Path(benchmark) if benchmark is not None else folder / BENCHMARK
    certified = (folder / CERTIFICATE).exists()
    return Facts(
        folder=folder,
        title=_title(manifest, config),
        compiled="model_class" in config,
        config=config,
        manifest=manifest,
        verified=verified,
        evidence=read_evidence(folder) or Evidence(),
        certificate=read_certificate(folder) if certified else None,
        benchmark=_read_benchmark(measured, required=benchmark is not None),
    )


def _title(manifest: Manifest, config: Mapping[str, Any]) -> str:
    if "model_class" in config:
        return str(config["model_class"])
    return _WEIGHTS.sub("", Path(manifest.source.location).name) or "Model"


def _read_benchmark(path: Path, required: bool) -> Benchmark | None:
    if not required and not path.exists():
        return None
    try:
        return parse_file(Benchmark, path, _LARGEST_BENCHMARK)
    except SourceError as error:
        raise SourceError(f"{error}; expected what `torch2mlx bench --json` prints") from None


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(str(v) for v in value) if isinstance(value, list | tuple) else ()
