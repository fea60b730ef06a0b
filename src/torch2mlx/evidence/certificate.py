"""torch2mlx/certificate.json: the proof of a folder in a form that another machine can check.

It binds the hashes of the source and of every file of the folder, the inputs on which both sides
were compared, the reference outputs, tolerances, results and versions.  It is not signed: its
digest says that it is the one that was made only to those who have the digest from elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2mlx.conversion.records import FileRecord, record_file, stays_inside
from torch2mlx.errors import SourceError
from torch2mlx.evidence.parsing import parse_file, plain
from torch2mlx.evidence.record import FOLDER
from torch2mlx.packaging.files import MANIFEST
from torch2mlx.sources.remote.files import RemotePath

if TYPE_CHECKING:
    from torch2mlx.evidence.reference import StoredRun
    from torch2mlx.packaging.manifest import Manifest

__all__ = ["CERTIFICATE", "Certificate", "hash_sources", "read_certificate", "write_certificate"]

CERTIFICATE = f"{FOLDER}/certificate.json"

_FORM = 1
_LARGEST = 16 << 20  # bytes


@dataclass(frozen=True)
class Run:
    """One comparison that can be repeated without PyTorch.

    Attributes:
        name: what the inputs were.
        method: of a compiled module; "" for a language model, which takes token ids.
        arguments: by name, see `torch2mlx.evidence.reference`.
        outputs: for each output its array in the reference file, shape and dtype.
        tolerance: relative L2 error that is allowed.
        relative: what it was when the folder was made.
    """

    name: str
    method: str
    arguments: Mapping[str, Any]
    outputs: tuple[StoredOutput, ...]
    tolerance: float
    relative: float | None


@dataclass(frozen=True)
class StoredOutput:
    """Elements of an output that are kept, evenly spread over it.

    Attributes:
        array: name in the reference file.
        shape: of the whole output.
        dtype: of it, as MLX names it.
        step: between elements that are kept.
    """

    array: str
    shape: tuple[int, ...]
    dtype: str
    step: int


@dataclass(frozen=True)
class Certificate:
    """What was proven about which files.

    Attributes:
        source: files that were converted, with their hashes where they lay on this machine's disk.
        location: of the source, as the user named it.
        manifest: size and hash of torch2mlx.json.
        files: every file of the folder that programs read.
        results: relative L2 difference of each comparison when the folder was made.
        tolerances: bound on each.
        reference: who computed the reference outputs, and with what.
        runs: what can be repeated.
        limits: why nothing, or not everything, can be repeated; "" if all can.
        versions: of the libraries.
        machine: on which the folder was made.
        created: UTC, ISO 8601.
        form: of this file.
        digest: SHA-256 of everything else here.
    """

    source: Mapping[str, FileRecord]
    location: str
    manifest: FileRecord
    files: Mapping[str, FileRecord]
    results: Mapping[str, float | None]
    tolerances: Mapping[str, float]
    reference: str
    runs: tuple[Run, ...]
    limits: str
    versions: Mapping[str, str]
    machine: Mapping[str, str]
    created: str
    form: int = _FORM
    digest: str = ""


def write_certificate(
    folder: Path, manifest: Manifest, reference: str, runs: Sequence[StoredRun], limits: str = ""
) -> Certificate:
    """Certify a folder whose manifest is written.

    Args:
        folder: of the output.
        manifest: of it.
        reference: who computed the reference outputs.
        runs: in the folder's reference file.
        limits: why not everything can be repeated.
    """
    results, tolerances = _results(manifest.verification)
    certificate = Certificate(
        source=manifest.source.files,
        location=manifest.source.location,
        manifest=record_file(folder / MANIFEST),
        files={**manifest.outputs, **_beside(folder)},
        results=results,
        tolerances=tolerances,
        reference=reference,
        runs=tuple(run.entry for run in runs),
        limits=limits,
        versions=manifest.versions,
        machine={"system": platform.system(), "processor": platform.machine()},
        created=manifest.created,
    )
    certificate = replace(certificate, digest=_digest(plain(certificate)))
    path = folder / CERTIFICATE
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(plain(certificate), indent=1) + "\n", encoding="utf-8")
    return certificate


def read_certificate(folder: Path) -> Certificate:
    """The certificate of a folder.

    Raises:
        SourceError: it has none, or one that is damaged, was edited, or is of a newer form.
    """
    path = folder / CERTIFICATE
    if not path.exists():
        raise SourceError(
            f"{path}: not found; `torch2mlx convert` writes a certificate unless --no-verify is "
            "given: convert the model again"
        )
    found = parse_file(Certificate, path, _LARGEST)
    if found.form > _FORM:
        raise SourceError(
            f"{path}: written by a newer torch2mlx (form {found.form}, this one reads {_FORM}); "
            "upgrade with `pip install -U torch2mlx`"
        )
    outside = [name for name in found.files if not stays_inside(name)]
    if outside:
        raise SourceError(f"{path}: damaged: file {outside[0]!r} does not stay inside the folder")
    if _digest(json.loads(path.read_bytes())) != found.digest:
        raise SourceError(
            f"{path}: edited: its digest is not that of its content; get the original, or convert "
            "the model again"
        )
    return found


def hash_sources(paths: Mapping[str, Path]) -> dict[str, FileRecord]:
    """Size and hash of source files that lie on a disk; others are left out.

    Args:
        paths: by the name in the manifest.
    """
    return {
        name: record_file(path)
        for name, path in paths.items()
        if not isinstance(path, RemotePath) or path.remote is None
    }


def _beside(folder: Path) -> dict[str, FileRecord]:
    """Records of what lies beside the manifest, the certificate itself aside."""
    names = sorted(path.name for path in (folder / FOLDER).iterdir() if path.is_file())
    own = CERTIFICATE.rpartition("/")[2]
    return {f"{FOLDER}/{n}": record_file(folder / FOLDER / n) for n in names if n != own}


def _results(verification: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
    """Figures and bounds of a manifest's comparisons, by part."""
    if "cases" in verification:
        name = "; ".join(verification["cases"])
        return {name: verification["error"]}, {name: verification["limit"]}
    parts = verification.get("comparisons") or ()
    results = {part["part"]: part["logits"]["relative"] for part in parts}
    return results, {part["part"]: part["tolerance"] for part in parts}


def _digest(raw: dict[str, Any]) -> str:
    content = {key: value for key, value in raw.items() if key != "digest"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
