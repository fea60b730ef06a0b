"""Run every check on a folder, or on this machine."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from torch2mlx.compiler.pipelines.kinds import INDEX as PIPELINE
from torch2mlx.diagnosis import settings, tokens, weights
from torch2mlx.diagnosis.finding import Finding, Patient
from torch2mlx.errors import SourceError
from torch2mlx.sources.local_files import read_json_object

__all__ = ["Examination", "examine_folder", "examine_machine"]

_LIBRARIES = ("mlx", "mlx-lm", "mlx-vlm", "torch", "transformers", "tokenizers", "safetensors")
_ASKING = ("torch2mlx", "mlx-lm", "transformers")
_ROOM = 10 * 10**9  # bytes of free disk below which most conversions fail


@dataclass(frozen=True)
class Examination:
    """What was found.

    Attributes:
        subject: the folder, or "this machine".
        facts: what is there, by name.
        findings: what is wrong, worst first in the order of the checks.
        fixed: names of findings that were mended.
    """

    subject: str
    facts: dict[str, str]
    findings: tuple[Finding, ...]
    fixed: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        """Nothing is wrong, or all of it was mended."""
        return all(finding.name in self.fixed for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "subject": self.subject,
            "healthy": self.healthy,
            "facts": self.facts,
            "findings": [finding.to_dict() for finding in self.findings],
            "fixed": list(self.fixed),
        }


def examine_folder(folder: Path, *, fix: bool = False) -> Examination:
    """Look for known faults of an MLX folder, from this or any other tool.

    No original is needed, so this finds what is wrong in itself; `torch2mlx verify` finds what
    differs from the original.

    Args:
        folder: with config.json and model*.safetensors, or with model_index.json and such folders.
        fix: mend what can be mended without the original; changed files keep a copy (.bak).

    Raises:
        SourceError: there is no such folder, or a mended file cannot be written.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder}: no such folder")
    if (folder / PIPELINE).is_file() and not (folder / "config.json").exists():
        return _examine_pipeline(folder, fix)
    patient = Patient(folder)
    try:
        findings = list(_run(patient))
        fixed = []
        for finding in findings if fix else ():
            if finding.fix is not None:
                finding.fix()
                fixed.append(finding.name)
    finally:
        patient.close()
    config = patient.config or {}
    facts = {
        "model": str(config.get("model_type", "unknown")),
        "weights": f"{sum(p.stat().st_size for p in patient.files) / 1e9:.2f} GB, "
        f"{len(patient.files)} files",
        "tokenizer": "none" if patient.tokenizer is None else type(patient.tokenizer).__name__,
        "converted by": "torch2mlx" if patient.manifest is not None else "unknown",
    }
    return Examination(str(folder), facts, tuple(findings), tuple(fixed))


def _examine_pipeline(folder: Path, fix: bool) -> Examination:
    """Each model that model_index.json names, by itself."""
    named = read_json_object(folder / PIPELINE)
    parts = sorted(n for n, value in named.items() if isinstance(value, list) and "/" not in n)
    facts = {"model": str(named.get("_class_name", "unknown")), "models": ", ".join(parts)}
    findings, fixed = [], []
    for name in parts:
        if not (folder / name).is_dir():
            findings.append(
                Finding(
                    f"{name}: missing",
                    "the pipeline has no such model",
                    f"{PIPELINE} names {name}, and there is no such folder",
                    "restore it from the conversion, or convert again",
                )
            )
            continue
        found = examine_folder(folder / name, fix=fix)
        facts[name] = found.facts["weights"]
        findings += [replace(f, name=f"{name}: {f.name}") for f in found.findings]
        fixed += [f"{name}: {known}" for known in found.fixed]
    return Examination(str(folder), facts, tuple(findings), tuple(fixed))


def _run(patient: Patient) -> Iterator[Finding]:
    checks: tuple[Callable[[Patient], Iterator[Finding]], ...] = (
        *settings.CHECKS,
        *weights.CHECKS,
        *tokens.CHECKS,
        _unfinished,
        _too_large,
    )
    for check in checks:
        yield from check(patient)


def _unfinished(patient: Patient) -> Iterator[Finding]:
    from torch2mlx.packaging.leftovers import find_leftovers

    own = patient.folder.absolute()
    left = [x for x in find_leftovers(own.parent) if x.destination.name == own.name]
    if left and not left[0].in_use:
        yield Finding(
            "unfinished-run",
            "disk space is gone",
            f"a stopped conversion left {left[0].path.name} ({left[0].size / 1e9:.2f} GB)",
            "run the same command again to go on, or torch2mlx clean to remove it",
        )


def _too_large(patient: Patient) -> Iterator[Finding]:
    from torch2mlx.selection.machines import gpu_limit

    memory = _memory()
    need = sum(path.stat().st_size for path in patient.files)
    limit = gpu_limit(round(memory / 2**30)) if sys.platform == "darwin" else memory
    if need > limit:
        yield Finding(
            "out-of-memory",
            "the process is killed, or every token takes seconds",
            f"the weights take {need / 1e9:.1f} GB, this machine gives {limit / 1e9:.1f} GB",
            "convert to fewer bits: torch2mlx plan SRC --fit shows what fits",
        )


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def examine_machine() -> Examination:
    """What this machine offers for conversion, and what would stop one."""
    import mlx.core as mx

    free = shutil.disk_usage(Path.cwd()).free
    facts = {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: found for name in _LIBRARIES if (found := _version(name))},
        "mlx device": str(mx.default_device()),
        "memory": f"{_memory() / 2**30:.0f} GB",
        "free disk here": f"{free / 1e9:.0f} GB",
    }
    findings = []
    if sys.platform == "darwin":
        limit = _sysctl("iogpu.wired_limit_mb")
        facts["GPU memory limit"] = f"{limit} MB" if limit and limit != "0" else "macOS's default"
    if free < _ROOM:
        findings.append(
            Finding(
                "disk-nearly-full",
                "conversions refuse to begin",
                f"{free / 1e9:.1f} GB are free here",
                "free some, or convert to another disk",
            )
        )
    missing = [name for name in ("mlx-lm", "torch", "transformers") if not _version(name)]
    if missing:
        findings.append(
            Finding(
                "library-missing",
                "conversion or verification stops with an import error",
                f"not installed: {', '.join(missing)}",
                f"pip install {' '.join(missing)}",
            )
        )
    disagreements = list(_disagreements())
    if disagreements:
        findings.append(
            Finding(
                "versions-disagree",
                "import errors, or models that are built otherwise than they were tested",
                "; ".join(disagreements[:4]),
                "install the versions that are asked for, best in an environment of their own",
            )
        )
    return Examination("this machine", facts, tuple(findings))


def _disagreements() -> Iterator[str]:
    """What the libraries' own metadata ask for and is not installed in that version."""
    for name in _ASKING:
        try:
            asked = requires(name) or []
        except PackageNotFoundError:
            continue
        for requirement in map(Requirement, asked):
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            found = _version(requirement.name)
            if found is not None and not requirement.specifier.contains(found, prereleases=True):
                yield f"{name} needs {requirement.name} {requirement.specifier}, {found} is here"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _sysctl(key: str) -> str | None:
    done = subprocess.run(["/usr/sbin/sysctl", "-n", key], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None
