"""Upload a converted folder to the Hugging Face hub, if it is still what was proven."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from torch2mlx.errors import OptionError, SourceError
from torch2mlx.evidence.certificate import CERTIFICATE, read_certificate
from torch2mlx.evidence.recheck import check_files
from torch2mlx.packaging.files import changed_files
from torch2mlx.packaging.manifest import Manifest, read_manifest
from torch2mlx.packaging.remote import LEFT_OUT, send_folder
from torch2mlx.sources.local_files import read_small

__all__ = ["Upload", "plan_upload", "upload_folder"]


@dataclass(frozen=True)
class Upload:
    """What goes to the hub.

    Attributes:
        folder: that is uploaded.
        repository: "owner/name".
        private: nobody else sees the repository, if it is created.
        files: (name, bytes) of each file.
        warnings: what a reader of the page will miss.
        address: of the repository; None: nothing was uploaded.
    """

    folder: Path
    repository: str
    private: bool
    files: tuple[tuple[str, int], ...]
    warnings: tuple[str, ...]
    address: str | None = None

    @property
    def nbytes(self) -> int:
        """Of all files."""
        return sum(size for _, size in self.files)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "folder": str(self.folder),
            "repository": self.repository,
            "private": self.private,
            "nbytes": self.nbytes,
            "files": dict(self.files),
            "warnings": list(self.warnings),
            "address": self.address,
        }


def plan_upload(folder: Path, repository: str, private: bool = False) -> Upload:
    """What an upload would do; nothing leaves the machine.

    Args:
        folder: what `convert` published.
        repository: "owner/name".
        private: create the repository for oneself.

    Raises:
        OptionError: no name that the hub takes.
        SourceError: torch2mlx did not make the folder, or its files are not those that were
            recorded and certified.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise OptionError(f"{repository}: no repository of the hub: {error}") from None
    manifest = read_manifest(folder)
    problems = list(_problems(folder, manifest))
    if problems:
        more = f"\n  and {len(problems) - 8} more" if len(problems) > 8 else ""
        listing = "".join(f"\n  {problem}" for problem in problems[:8])
        raise SourceError(f"{folder}: not uploaded, it is not what was proven:{listing}{more}")
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    kept = sorted(name for name in names if not _is_left_out(name))
    files = tuple((name, (folder / name).stat().st_size) for name in kept)
    return Upload(folder, repository, private, files, tuple(_warnings(folder, manifest)))


def upload_folder(folder: Path, repository: str, private: bool = False) -> Upload:
    """Check a folder and upload it; arguments and errors as of `plan_upload`.

    Raises:
        DestinationError: no access, no network, or a name that the hub refuses.
    """
    planned = plan_upload(folder, repository, private)
    return replace(planned, address=send_folder(folder, repository, private))


def _is_left_out(name: str) -> bool:
    """Whether one of `LEFT_OUT` takes a file, as the hub's client matches them."""
    return any(fnmatch(name, pattern) for pattern in LEFT_OUT)


def _problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    if (folder / CERTIFICATE).exists():
        yield from check_files(folder, read_certificate(folder))
        return
    for name in changed_files(folder, manifest.outputs):
        state = "changed since it was written" if (folder / name).is_file() else "missing"
        yield f"{name}: {state}; copy the original here, or convert the model again"


def _warnings(folder: Path, manifest: Manifest) -> Iterator[str]:
    card = _card(folder)
    if card is None:
        yield "README.md: missing or unreadable, so the page will be empty"
    elif not card.get("license"):
        yield (
            "README.md: no license; add `license:` of the original model to its front matter, "
            "since many licenses ask for it"
        )
    if not (folder / CERTIFICATE).exists():
        yield "no certificate: the folder was never compared with PyTorch, or by an older version"
    if Path(manifest.source.location).is_absolute():
        yield f"torch2mlx.json: names a place of this machine: {manifest.source.location}"


def _card(folder: Path) -> dict[str, Any] | None:
    """Front matter of the model card; None where there is none."""
    from huggingface_hub import ModelCard

    try:
        text = read_small(folder / "README.md").decode()
        found: dict[str, Any] = ModelCard(text).data.to_dict()  # type: ignore[no-untyped-call]
    except Exception:  # whatever people write there; the hub shows it all the same
        return None
    return found
