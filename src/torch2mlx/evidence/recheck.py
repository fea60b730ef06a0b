"""Check a certificate where the folder is now, without PyTorch: hashes, then the runs again."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from torch2mlx.conversion.records import FileRecord
from torch2mlx.errors import SourceError
from torch2mlx.evidence.certificate import (
    CERTIFICATE,
    Certificate,
    Run,
    StoredOutput,
    read_certificate,
)
from torch2mlx.evidence.reference import (
    REFERENCE,
    load_arguments,
    output_array,
    read_arrays,
    thinned,
)
from torch2mlx.packaging.files import MANIFEST, changed_files, unrecorded_files
from torch2mlx.packaging.manifest import library_versions
from torch2mlx.sources.local_files import read_json_object

__all__ = ["CertificateCheck", "RunCheck", "check_certificate", "check_files"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class RunCheck:
    """One run of the certificate, repeated here.

    Attributes:
        name: what the inputs were.
        relative: largest relative L2 difference of an output from the reference.
        tolerance: that is allowed.
        before: what it was when the folder was made.
    """

    name: str
    relative: float
    tolerance: float
    before: float | None

    @property
    def passed(self) -> bool:
        """Within the tolerance; NaN is not."""
        return self.relative <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            **vars(self),
            "relative": self.relative if np.isfinite(self.relative) else None,
            "passed": self.passed,
        }


@dataclass(frozen=True)
class CertificateCheck:
    """What became of a certificate.

    Attributes:
        folder: that was checked.
        digest: of the certificate, to be compared with one from elsewhere.
        files: number of files whose hashes were checked.
        problems: files that are not what was certified, each with what to do.
        runs: that were repeated; none where there is a problem with the files.
        limits: why nothing, or not everything, could be repeated.
        versions: library → (version then, version now), where they differ.
    """

    folder: Path
    digest: str
    files: int
    problems: tuple[str, ...]
    runs: tuple[RunCheck, ...]
    limits: str
    versions: Mapping[str, tuple[str, str]]

    @property
    def passed(self) -> bool:
        """Every file is the certified one, and every repeated run gives the reference outputs."""
        return not self.problems and all(run.passed for run in self.runs)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "folder": str(self.folder),
            "passed": self.passed,
            "digest": self.digest,
            "files": self.files,
            "problems": list(self.problems),
            "runs": [run.to_dict() for run in self.runs],
            "limits": self.limits,
            "versions": {name: list(pair) for name, pair in self.versions.items()},
        }


def check_certificate(folder: Path, trust_remote_code: bool = False) -> CertificateCheck:
    """Check files and outputs of a folder against its certificate; PyTorch is not needed.

    Args:
        folder: what `convert` published, wherever it is now.
        trust_remote_code: allow code in the folder (model.py) to run.

    Raises:
        SourceError: no certificate, a damaged one, or code that may not run.
    """
    certificate = read_certificate(folder)
    problems = tuple(check_files(folder, certificate))
    runs = () if problems else tuple(_repeat(folder, certificate, trust_remote_code))
    now = library_versions()
    return CertificateCheck(
        folder=folder,
        digest=certificate.digest,
        files=len(certificate.files) + 1,
        problems=problems,
        runs=runs,
        limits=certificate.limits,
        versions={
            name: (then, now.get(name, "not installed"))
            for name, then in certificate.versions.items()
            if now.get(name) != then
        },
    )


def check_files(folder: Path, certificate: Certificate) -> Iterator[str]:
    """What is wrong with the files of a folder, as texts for the user."""
    recorded: dict[str, FileRecord] = {**certificate.files, MANIFEST: certificate.manifest}
    for name in changed_files(folder, recorded):
        state = "changed since it was certified" if (folder / name).is_file() else "missing"
        yield f"{name}: {state}; copy the original here, or convert the model again"
    for name in unrecorded_files(folder, recorded, {CERTIFICATE}):
        yield f"{name}: not part of what was certified; remove it"


def _repeat(folder: Path, certificate: Certificate, trust: bool) -> Iterator[RunCheck]:
    if not certificate.runs:
        return
    if REFERENCE not in certificate.files:
        raise SourceError(f"{folder / CERTIFICATE}: damaged: {REFERENCE} is not listed")
    arrays = read_arrays(folder)
    config = read_json_object(folder / "config.json")
    if not trust and ("model_class" in config or config.get("model_file")):
        raise SourceError(
            f"{folder}: its files are the certified ones; to repeat the outputs, code of the "
            "folder (model.py) has to run: read it, then pass --trust-remote-code"
        )
    with _without_bytecode():
        compiled = "model_class" in config
        model: _Model = _CompiledModel(folder) if compiled else _LanguageModel(folder, trust)
        for run in certificate.runs:
            yield _compared(run, arrays, model)


@contextmanager
def _without_bytecode() -> Iterator[None]:
    """Python files run as they are written: compiled ones beside them were not certified."""
    before = sys.pycache_prefix
    with tempfile.TemporaryDirectory() as empty:
        sys.pycache_prefix = empty
        try:
            yield
        finally:
            sys.pycache_prefix = before


def _compared(run: Run, arrays: Mapping[str, Any], model: _Model) -> RunCheck:
    found = model.outputs(run, load_arguments(run, arrays))
    missing = [o.array for o in run.outputs if o.array not in arrays]
    if missing:
        raise SourceError(f"{REFERENCE}: damaged: no array {missing[0]!r}")
    worst = float("inf") if len(found) != len(run.outputs) else 0.0
    for output, array in zip(run.outputs, found, strict=False):
        worst = max(worst, _difference(output, arrays[output.array], array))
    return RunCheck(run.name, worst, run.tolerance, run.relative)


def _difference(stored: StoredOutput, expected: Any, found: Any) -> float:
    """Relative L2 difference of the kept elements; infinite for another shape or kind.

    Floating-point types may differ in width: a module that was compiled in another dtype is
    compared with the original's.
    """
    array = output_array(found)
    if tuple(array.shape) != stored.shape:
        return float("inf")
    a, b = _numpy(expected).ravel(), _numpy(thinned(array, stored.step)).ravel()
    if a.shape != b.shape or a.dtype.kind != b.dtype.kind:
        return float("inf")
    if not np.issubdtype(a.dtype, np.inexact):
        return 0.0 if np.array_equal(a, b) else float("inf")
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)) or not np.array_equal(
        a[~finite], b[~finite], equal_nan=True
    ):
        return float("inf")
    a, b = a[finite].astype(np.complex128), b[finite].astype(np.complex128)
    scale = float(np.linalg.norm(a))
    distance = float(np.linalg.norm(a - b))
    return distance / scale if scale else distance


def _numpy(array: Any) -> Array:
    import mlx.core as mx

    return np.array(array.astype(mx.float32) if array.dtype == mx.bfloat16 else array)


class _Model(Protocol):
    """What runs again."""

    def outputs(self, run: Run, arguments: Mapping[str, Any]) -> list[Any]:
        """Outputs of a run, flat."""


class _LanguageModel:
    """A folder as mlx-lm opens it, in float32."""

    def __init__(self, folder: Path, trust_remote_code: bool) -> None:
        from torch2mlx.loading import load_language_model
        from torch2mlx.verification.candidate import to_float32

        model, _ = load_language_model(folder, trust_remote_code=trust_remote_code, tokenizer=False)
        self.model = to_float32(model)

    def outputs(self, run: Run, arguments: Mapping[str, Any]) -> list[Any]:
        import mlx.core as mx

        from torch2mlx.verification.candidate import run_candidate

        tokens, columns = (np.array(arguments[key]) for key in ("tokens", "columns"))
        logits = run_candidate(self.model, tokens).logits
        return [mx.array(np.ascontiguousarray(logits[:, columns]))]


class _CompiledModel:
    """A compiled module; state that its methods change goes on from run to run."""

    def __init__(self, folder: Path) -> None:
        from torch2mlx.compiler.parity.running import import_model

        try:
            self.model = import_model(folder).load(str(folder))
        except Exception as error:  # code of the folder
            raise SourceError(f"{folder / 'model.py'}: does not load: {error}") from error

    def outputs(self, run: Run, arguments: Mapping[str, Any]) -> list[Any]:
        from torch2mlx.compiler.parity.running import flat_outputs

        return flat_outputs(getattr(self.model, run.method)(**arguments))
