"""A chosen strategy in a file: `plan --out plan.json`, then `convert --plan plan.json`.

The file is what `Selection.to_dict` gives.  It names the source with a fingerprint of its files,
and a strategy of this package's own; a digest over everything tells a file that was edited.
Whoever writes a digest anew still chooses no more than a source and one of the strategies: options
are compared with the strategy's, and what lets code run is never taken from the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2mlx.errors import OptionError, PlanError, SourceError
from torch2mlx.options import ConvertOptions
from torch2mlx.sources.remote.files import RemotePath

if TYPE_CHECKING:
    from torch2mlx.sources.base import Checkpoint

__all__ = ["SCHEMA_VERSION", "PlannedConversion", "fingerprint", "read_plan", "seal"]

SCHEMA_VERSION = 1

_LARGEST = 16 << 20  # bytes; a plan of a checkpoint of a thousand files has one tenth
_OWN = ("verify", "trust_remote_code", "keep_download", "restart", "wait")  # of the command line
# Besides those of the strategy itself: they depend on the checkpoint or on `plan`'s options.
_FURTHER = ("memory_limit", "max_shard_size", "fit", "context", "revision")


@dataclass(frozen=True)
class PlannedConversion:
    """What a plan file orders.

    Attributes:
        file: where it was read.
        location: of the source.
        strategy: its name.
        options: of `torch2mlx.convert`.
        nbytes: of the weight files that must come out.
        fingerprint: of the source's files.
    """

    file: Path
    location: str
    strategy: str
    options: Mapping[str, Any]
    nbytes: int
    fingerprint: Mapping[str, Any]

    def apply(self, asked: ConvertOptions) -> ConvertOptions:
        """The plan's options, with those of the run that the user gave.

        Raises:
            OptionError: the user gave one that the plan decides.
        """
        plain = {k: v for k, v in vars(asked).items() if k not in _OWN}
        default = vars(ConvertOptions())
        given = sorted(k for k, v in plain.items() if v != default[k])
        if given:
            flags = ", ".join("--" + name.replace("_", "-") for name in given)
            raise OptionError(f"--plan {self.file}: says how to convert; leave out {flags}")
        made = replace(asked, **self.options)
        made.check()
        return made

    def check_source(self, checkpoint: Checkpoint) -> None:
        """Raise PlanError where the source is not the one that was planned for."""
        now = fingerprint(checkpoint)
        if now == self.fingerprint:
            return
        names = sorted(self.fingerprint.keys() | now.keys())
        changed = [n for n in names if self.fingerprint.get(n) != now.get(n)]
        raise PlanError(
            f"--plan {self.file}: the source changed since it was planned "
            f"({', '.join(changed[:3])}{' ...' if len(changed) > 3 else ''}); make the plan again: "
            f"torch2mlx plan {self.location} --out {self.file}"
        )

    def check_bytes(self, nbytes: int) -> None:
        """Raise PlanError where the weight files would have another size than planned."""
        if nbytes != self.nbytes:
            raise PlanError(
                f"--plan {self.file}: {self.strategy} makes {nbytes:,} bytes of weights here, the "
                f"plan says {self.nbytes:,}; make the plan again with these versions of mlx-lm and "
                "transformers"
            )


def fingerprint(checkpoint: Checkpoint) -> dict[str, Any]:
    """Size, time of change and both ends of the weight files, and config.json.

    Of remote files the size and the version that their server tells; nothing more is fetched.
    """
    from torch2mlx.conversion.identity import SourceState

    config = checkpoint.folder / "config.json"
    files = [p for p in (*checkpoint.source.files, config) if p.is_file()]
    there = [p for p in files if isinstance(p, RemotePath) and p.remote is not None]
    found = SourceState.take(p for p in files if p not in there).to_dict(checkpoint.folder)
    for path in there:
        state = path.stat()
        found[path.name] = {"size": state.st_size, "changed": state.st_mtime_ns}
    return found


def seal(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with its digest."""
    return {**document, "digest": _digest(document)}


def _digest(document: Mapping[str, Any]) -> str:
    plain = {k: v for k, v in document.items() if k != "digest"}
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_plan(file: str | Path) -> PlannedConversion:
    """Read a plan file; nothing but reading happens.

    Raises:
        SourceError: it cannot be read, is no plan, or was edited.
    """
    from torch2mlx.selection.strategies import strategy_options

    path = Path(file)
    found = _object(path)
    if found.get("schema_version") != SCHEMA_VERSION or "strategies" not in found:
        raise _refused(path, f"is no plan of form {SCHEMA_VERSION}")
    if found.get("digest") != _digest(found):
        raise _refused(path, "was edited since torch2mlx wrote it")
    name = found.get("chosen")
    rows = found["strategies"] if isinstance(found["strategies"], list) else ()
    known = strategy_options(name) if isinstance(name, str) else None
    row = next((r for r in rows if isinstance(r, dict) and r.get("name") == name), None)
    if known is None or row is None:
        raise _refused(path, f"chooses no strategy that there is ({str(name)[:40]!r})")
    options, location, nbytes = found.get("options"), found.get("location"), row.get("nbytes")
    files = found.get("fingerprint")
    if not isinstance(options, dict) or {
        k: v for k, v in options.items() if k not in _FURTHER or k in known
    } != dict(known):
        raise _refused(path, f"gives {name} other options than it has")
    if any(not isinstance(options[k], str | int | None) for k in _FURTHER if k in options):
        raise _refused(path, "has an option that is neither text nor number")
    if not isinstance(location, str) or not isinstance(files, dict) or type(nbytes) is not int:
        raise _refused(path, "lacks its source, its size or the source's fingerprint")
    _require_checkpoint(path, location)
    return PlannedConversion(path, location, str(name), options, nbytes, files)


def _require_checkpoint(path: Path, location: str) -> None:
    """A plan must not name code to run in place of a checkpoint."""
    from torch2mlx.compiler.route import is_program

    if is_program(location):
        raise _refused(path, f"names a program ({location[:60]!r}), not a checkpoint")


def _object(path: Path) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():
            raise _refused(path, "is no regular file")
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
        found = json.loads(data) if len(data) <= _LARGEST else None
    except OSError as error:
        raise SourceError(f"--plan {path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise _refused(path, "is no JSON") from error
    if not isinstance(found, dict):
        raise _refused(path, "is no plan")
    return found


def _refused(path: Path, reason: str) -> SourceError:
    return SourceError(f"--plan {path}: {reason}; make it with torch2mlx plan SRC --out FILE")
