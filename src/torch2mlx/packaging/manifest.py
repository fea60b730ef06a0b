"""torch2mlx.json: where a converted folder comes from and what was proven about it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2mlx import __version__
from torch2mlx.conversion.records import SHA256, FileRecord, stays_inside
from torch2mlx.errors import SourceError
from torch2mlx.packaging.files import MANIFEST, output_records, source_record
from torch2mlx.sources.local_files import read_small

if TYPE_CHECKING:
    from torch2mlx.packaging.index import WeightSummary
    from torch2mlx.planning.plan import Plan
    from torch2mlx.sources.base import Checkpoint

__all__ = [
    "MANIFEST",
    "SCHEMA_VERSION",
    "Manifest",
    "SourceRecord",
    "build_manifest",
    "library_versions",
    "plan_record",
    "read_manifest",
    "source_files",
    "weight_record",
]

SCHEMA_VERSION = 1

_LARGEST = 64 << 20  # bytes; a real one of the largest models has a few
_LIBRARIES = ("mlx", "mlx-lm", "numpy", "safetensors", "tokenizers", "torch", "transformers")


@dataclass(frozen=True)
class SourceRecord:
    """What was converted.

    Attributes:
        location: folder, file or hub id, as the user named it.  A text, never opened.
        kind: "safetensors", "torch" or "gguf".
        files: by name, relative to the checkpoint's folder.
    """

    location: str
    kind: str
    files: Mapping[str, FileRecord] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """Provenance and proof of a converted folder.

    Attributes:
        source: what was converted.
        options: as the user gave them.
        plan: {"port", "tensors": how many were written, "dtype", "dropped": {name: reason},
            "schemes": {module: scheme}, "reasons": {module: why}, "notes": [text]}, and what else
            was decided ("memory", "attempts", "runtime_precision").
        weights: {"total_size", "total_parameters", "bits_per_weight"}, measured on the files.
        outputs: files of the folder that programs read (`output_records`).
        verification: `ParityReport.to_dict()`, or {"skipped": true}.
        tokenizer: `TokenizerReport.to_dict()`, or None where it was not checked.
        measured: memory and times of the run ("peak_rss_bytes", "convert_cpu_s" ...).
        created: UTC, ISO 8601.
        versions: of torch2mlx and the libraries, by name.
        schema_version: of this file's form.
    """

    source: SourceRecord
    options: Mapping[str, Any]
    plan: Mapping[str, Any]
    weights: Mapping[str, float]
    outputs: Mapping[str, FileRecord]
    verification: Mapping[str, Any]
    tokenizer: Mapping[str, Any] | None = None
    measured: Mapping[str, float] = field(default_factory=dict)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    versions: Mapping[str, str] = field(default_factory=lambda: library_versions())
    schema_version: int = SCHEMA_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Plain values; infinities and NaN, which JSON lacks, become None."""
        plain: dict[str, Any] = _finite(asdict(self))
        return {"schema_version": plain.pop("schema_version"), **plain}

    def write(self, folder: Path) -> Path:
        """Write torch2mlx.json into the folder."""
        path = folder / MANIFEST
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")
        return path


def library_versions() -> dict[str, str]:
    """Versions of torch2mlx and of the libraries that touch the numbers, none imported."""
    found = {"torch2mlx": __version__}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def build_manifest(
    *,
    checkpoint: Checkpoint,
    plan: Plan,
    port_module: str,
    options: Mapping[str, Any],
    summary: WeightSummary,
    folder: Path,
    parity: Mapping[str, Any] | None,
    tokenizer: Mapping[str, Any] | None,
    measured: Mapping[str, float],
    notes: Sequence[str],
    known: Mapping[str, FileRecord] | None = None,
    decisions: Mapping[str, Any] | None = None,
    sources: Mapping[str, FileRecord] | None = None,
) -> Manifest:
    """The manifest of a folder whose weights, configs and tokenizer files are written.

    Args:
        checkpoint: what was converted.
        plan: how.
        port_module: module of mlx-lm's port ("mlx_lm.models.llama").
        options: as the user gave them.
        summary: of the weight files.
        folder: of the output; its files are hashed.
        parity: `ParityReport.to_dict()`; None: the gate was skipped.
        tokenizer: `TokenizerReport.to_dict()`.
        measured: figures of the run.
        notes: what a user should know.
        known: records of output files that were hashed as they were written.
        decisions: further entries of the plan.
        sources: records of source files, where they were hashed.
    """
    names = source_files(checkpoint)
    sources = sources or {}
    return Manifest(
        source=SourceRecord(
            location=checkpoint.location,
            kind=checkpoint.kind,
            files={n: sources.get(n) or source_record(p) for n, p in sorted(names.items())},
        ),
        options=options,
        plan={**plan_record(plan, port_module, notes), **(decisions or {})},
        weights=weight_record(summary),
        outputs=output_records(folder, known),
        verification=dict(parity) if parity is not None else {"skipped": True},
        tokenizer=tokenizer,
        measured=measured,
    )


def source_files(checkpoint: Checkpoint) -> dict[str, Path]:
    """Files of a checkpoint that are converted or carried over, by the manifest's names."""
    files = (*checkpoint.source.files, checkpoint.folder / "config.json")
    names = {_relative(p, checkpoint.folder): p for p in files if p.is_file()}
    names.update({n: p for n, p in checkpoint.tokenizer_files.items() if p.is_file()})
    return names


def plan_record(plan: Plan, port_module: str, notes: Sequence[str]) -> dict[str, Any]:
    """What a manifest says of a plan."""
    return {
        "port": port_module,
        "tensors": sum(len(output.specs) for output in plan.outputs),
        "dtype": plan.dtype.torch_name if plan.dtype else None,
        "dropped": dict(plan.dropped),
        "schemes": {o.module: o.scheme.to_config() for o in plan.outputs if o.scheme},
        "reasons": dict(plan.assignment.reasons) if plan.assignment else {},
        "notes": list(notes),
    }


def weight_record(summary: WeightSummary) -> dict[str, float]:
    """What a manifest says of the weight files."""
    return {
        "total_size": summary.total_size,
        "total_parameters": summary.total_parameters,
        "bits_per_weight": summary.bits_per_weight,
    }


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def read_manifest(folder: Path) -> Manifest:
    """Read torch2mlx.json.

    The file is data from anywhere: types are checked, and names of output files that would
    lead out of the folder are refused.

    Raises:
        SourceError: there is none, it is damaged, or a newer torch2mlx wrote it; the message
            names the entry.
    """
    path = folder / MANIFEST
    try:
        size = path.stat().st_size
        if size > _LARGEST:
            raise _damaged(path, f"{size:,} bytes; at most {_LARGEST:,} are expected")
        raw = json.loads(read_small(path), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise SourceError(
            f"{path}: not found; only folders that torch2mlx converted have one"
        ) from None
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"no valid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise _damaged(path, "no JSON object")
    entries = _Entries(path, raw)
    schema = entries.get("schema_version", int)
    if schema > SCHEMA_VERSION:
        raise SourceError(
            f"{path}: written by a newer torch2mlx (form {schema}, this one reads up to "
            f"{SCHEMA_VERSION}); upgrade with `pip install -U torch2mlx`"
        )
    if schema < 1:
        raise _damaged(path, f"schema_version {schema}; expected 1 or more")
    source = _Entries(path, entries.get("source", dict), "source.")
    measured = entries.get("measured", dict)
    versions = entries.get("versions", dict)
    weights = entries.get("weights", dict)
    entries.each("weights", weights, (int, float))
    entries.each("measured", measured, (int, float))
    entries.each("versions", versions, (str,))
    return Manifest(
        source=SourceRecord(
            location=source.get("location", str),
            kind=source.get("kind", str),
            files=source.files("files"),
        ),
        options=entries.get("options", dict),
        plan=entries.get("plan", dict),
        weights=weights,
        outputs=entries.files("outputs"),
        verification=entries.get("verification", dict),
        tokenizer=entries.get("tokenizer", dict, type(None)),
        measured=measured,
        created=entries.get("created", str),
        versions=versions,
        schema_version=schema,
    )


class _Entries:
    """Typed access to a JSON object."""

    def __init__(self, path: Path, raw: Mapping[str, Any], prefix: str = "") -> None:
        self.path = path
        self.raw = raw
        self.prefix = prefix

    def get(self, key: str, *types: type) -> Any:
        if key not in self.raw:
            raise _damaged(self.path, f"entry {self.prefix + key!r} is missing")
        value = self.raw[key]
        if type(value) not in types:
            expected = " or ".join(_JSON_NAMES[t] for t in types)
            found = _JSON_NAMES.get(type(value), "something else")
            raise _damaged(self.path, f"entry {self.prefix + key!r} is {found}, not {expected}")
        return value

    def each(self, key: str, values: Mapping[str, Any], types: tuple[type, ...]) -> None:
        for name, value in values.items():
            if type(value) not in types:
                expected = " or ".join(_JSON_NAMES[t] for t in types)
                raise _damaged(self.path, f"entry '{key}.{name}' is not {expected}")

    def files(self, key: str) -> dict[str, FileRecord]:
        records = {}
        for name, entry in self.get(key, dict).items():
            where = f"file {name!r} of {self.prefix + key!r}"
            if not stays_inside(name):
                raise _damaged(self.path, f"{where} does not stay inside the folder")
            if not isinstance(entry, dict):
                raise _damaged(self.path, f"{where} has no size")
            size, digest = entry.get("size"), entry.get("sha256")
            if type(size) is not int or size < 0:
                raise _damaged(self.path, f"{where} has the size {str(size)[:40]}")
            if digest is not None and not (isinstance(digest, str) and SHA256.fullmatch(digest)):
                raise _damaged(self.path, f"{where}: its sha256 is not 64 hex digits")
            records[name] = FileRecord(size, digest)
        return records


_JSON_NAMES: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _damaged(path: Path, what: str) -> SourceError:
    return SourceError(
        f"{path}: damaged: {what}; convert the model again or delete the file (the weights do "
        "not need it)"
    )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
