"""What the tensor audit found, as frozen values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Literal

from torch2mlx.errors import ParityError

__all__ = ["AuditReport", "Kind", "TensorCheck"]

Kind = Literal[
    "exact",
    "cast",
    "function",
    "quantized",
    "calibrated",
    "repacked",
    "tied",
    "missing",
    "unexpected",
]


@dataclass(frozen=True)
class TensorCheck:
    """One parameter compared with its source.

    Attributes:
        name: of the parameter (a quantized one stands for its weight, scales and biases).
        nbytes: as written.
        kind: "exact": the source's bits, moved; "cast": its values, rounded to another dtype;
            "function": its values after other functions, within their roundoff; "quantized":
            within the error of rounding to nearest; "calibrated": quantized, with the codes,
            scales and biases that calibration found; "repacked": quantized, and equal to the
            source in float32; "tied": dropped, and equal to the tensor that replaces it;
            "missing", "unexpected": in the plan or the files alone.
        ok: the comparison passed.
        max_error: largest absolute difference.
        rms: ‖written - source‖ / ‖source‖; absolute where the source is zero.
        recomputed: the expected values came from the conversion's own expression, because no
            way back exists (several tensors joined by a function).
        detail: for a failure: rows, expected, found.
    """

    name: str
    nbytes: int
    kind: Kind
    ok: bool
    max_error: float = 0.0
    rms: float = 0.0
    recomputed: bool = False
    detail: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "nbytes": self.nbytes,
            "kind": self.kind,
            "ok": self.ok,
            "max_error": self.max_error if isfinite(self.max_error) else None,
            "rms": self.rms if isfinite(self.rms) else None,
            "recomputed": self.recomputed,
            "detail": self.detail,
        }


@dataclass(frozen=True)
class AuditReport:
    """The audit of a folder.

    Attributes:
        checks: one for each parameter, in the plan's order.
        hashes: SHA-256 of each weight file, by name.
    """

    checks: tuple[TensorCheck, ...]
    hashes: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Every tensor is as it should be, and there is one."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    @property
    def first_failure(self) -> TensorCheck | None:
        """The first parameter that is wrong."""
        return next((check for check in self.checks if not check.ok), None)

    def require(self) -> None:
        """Raise ParityError if a tensor differs."""
        failure = self.first_failure
        if failure is not None:
            count = sum(not check.ok for check in self.checks)
            raise ParityError(
                f"audit: {count} of {len(self.checks)} tensors differ from their source; the "
                f"first: {failure.detail}"
            )

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors compared."""
        return sum(check.nbytes for check in self.checks)

    @property
    def counts(self) -> dict[str, int]:
        """Number of parameters of each kind."""
        return dict(Counter(check.kind for check in self.checks))

    @property
    def recomputed(self) -> int:
        """Number of parameters without a way back."""
        return sum(check.recomputed for check in self.checks)

    def to_dict(self, *, tensors: bool = False) -> dict[str, Any]:
        """Plain values for JSON: a summary, and each check if `tensors`."""
        failure = self.first_failure
        quantized = [check.rms for check in self.checks if check.kind == "quantized"]
        result: dict[str, Any] = {
            "passed": self.passed,
            "tensors": len(self.checks),
            "nbytes": self.nbytes,
            "counts": self.counts,
            "recomputed": self.recomputed,
            "largest_quantization_rms": max(quantized, default=0.0),
            "first_failure": failure.detail if failure else None,
            "sha256": dict(self.hashes),
        }
        if tensors:
            result["checks"] = [check.to_dict() for check in self.checks]
        return result
