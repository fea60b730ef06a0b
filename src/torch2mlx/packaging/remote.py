"""Destinations behind a URL: a verified folder is uploaded, the file that makes it a model last."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch2mlx.errors import DestinationError, SourceError
from torch2mlx.packaging.index import INDEX
from torch2mlx.sources.remote.files import is_network_error, patiently, reason_of
from torch2mlx.sources.remote.folder import file_system
from torch2mlx.sources.remote.urls import HUB, shown

__all__ = ["LEFT_OUT", "RemoteDestination", "send_folder"]

LEFT_OUT = [".*", "**/.*", "__pycache__/*", "**/__pycache__/*"]
"""Patterns of files that are not uploaded to the hub: of desktops, version control, Python."""

# Without these no loader takes a folder for a model, so they come last and in this order.
_LAST = (INDEX, "config.json")


class RemoteDestination:
    """A folder to be, at a URL.

    Args:
        url: s3://bucket/folder, hf://owner/name or another one that fsspec can write to.

    Attributes:
        url: without credentials.
        local: where the folder is made before it is uploaded, in the working directory; the name
            is the same in every run.

    Raises:
        DestinationError: the URL names no folder, or its library is missing.
    """

    def __init__(self, url: str) -> None:
        self.url = shown(url).rstrip("/")
        self._hub = self.url.removeprefix(HUB) if url.startswith(HUB) else None
        name = self.url.partition("://")[2].rpartition("/")[2]
        if not name or name.startswith(".") or (self._hub and self._hub.count("/") != 1):
            raise DestinationError(
                f"destination {self.url}: names no folder; expected hf://owner/name or a URL such "
                "as s3://bucket/folder"
            )
        if url.lower().startswith(("http://", "https://")):
            raise DestinationError(
                f"destination {self.url}: web servers take no folders; give a folder here, "
                "hf://owner/name or an object store such as s3://bucket/folder"
            )
        digest = hashlib.sha256(self.url.encode()).hexdigest()[:8]
        self.local = Path.cwd() / f"{name}.upload-{digest}"
        if self._hub is None:
            try:
                self._system, self._root = file_system(url.partition("?")[0].rstrip("/"))
            except SourceError as error:
                raise DestinationError(f"destination {error}") from error

    def require_new(self, begun: bool) -> None:
        """Raise DestinationError if something is there.

        Args:
            begun: an upload of this folder was stopped; what it left may be there.
        """
        names = self._names()
        if "config.json" in names or (names and not begun and self._hub is None):
            raise DestinationError(
                f"destination {self.url} exists already, and nothing is ever overwritten; remove "
                "it or choose another name"
            )

    def _names(self) -> set[str]:
        return set(self._ask(self._hub_names if self._hub else self._listed))

    def _hub_names(self) -> list[str]:
        from huggingface_hub import HfApi

        assert self._hub is not None
        api = HfApi()
        return api.list_repo_files(self._hub) if api.repo_exists(self._hub) else []

    def _listed(self) -> list[str]:
        self._system.invalidate_cache()
        try:
            found = self._system.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        return [str(name).rstrip("/").rpartition("/")[2] for name in found]

    def upload(self, folder: Path, progress: Callable[[int], None]) -> None:
        """Upload a finished folder.

        On the hub everything appears in one commit; elsewhere file by file.

        Args:
            folder: what was published locally; every file in it is uploaded.
            progress: hears of the bytes that have arrived.

        Raises:
            DestinationError: no access, or the connection stays broken; what is local is kept.
        """
        self.require_new(begun=True)
        if self._hub is not None:
            send_folder(folder, self._hub)
            return
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in sorted(files, key=lambda path: _rank(path.relative_to(folder).as_posix())):
            target = f"{self._root.rstrip('/')}/{path.relative_to(folder).as_posix()}"
            self._ask(lambda path=path, target=target: self._put(path, target))  # type: ignore[misc]
            progress(path.stat().st_size)

    def _put(self, path: Path, target: str) -> None:
        self._system.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._system.put_file(str(path), target)
        self._system.invalidate_cache()
        arrived = self._system.info(target).get("size")
        if arrived != path.stat().st_size:
            raise ConnectionError(f"{arrived} of {path.stat().st_size:,} bytes arrived")

    def _ask(self, ask: Callable[[], Any]) -> Any:
        try:
            return patiently(self.url, ask)
        except SourceError as error:
            raise DestinationError(f"destination {error}") from error
        except NotImplementedError as error:
            raise DestinationError(
                f"destination {self.url}: nothing can be written there; choose another place"
            ) from error
        except Exception as error:
            if not is_network_error(error):
                raise
            raise DestinationError(f"destination {self.url}: {reason_of(error)}") from error


def send_folder(folder: Path, repository: str, private: bool = False) -> str:
    """Upload a folder as it is, hidden files aside, in one commit.

    Returns:
        the address of the repository, which is created where it does not exist.

    Raises:
        DestinationError: no access, no network, or a name that the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    hub = HfApi()
    options: dict[str, Any] = {"private": True} if private else {}
    try:
        address = hub.create_repo(repo_id=repository, exist_ok=True, **options)
        hub.upload_folder(repo_id=repository, folder_path=folder, ignore_patterns=LEFT_OUT)
    except Exception as error:
        if not isinstance(error, HFValidationError) and not is_network_error(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise DestinationError(
            f"{folder} is converted, but cannot be uploaded to {repository}: {reason}; log in with "
            "`hf auth login` and upload the folder with `hf upload`"
        ) from error
    return str(address)


def _rank(name: str) -> int:
    return _LAST.index(name) + 1 if name in _LAST else 0
