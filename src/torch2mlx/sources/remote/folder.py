"""Folders behind a URL that fsspec can read: s3://, gs://, https://, memory:// ..."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from torch2mlx.errors import SourceError
from torch2mlx.sources.companions import CARD, check_companion, is_companion, read_config
from torch2mlx.sources.local_files import read_json_object
from torch2mlx.sources.remote.files import RemoteFile, is_network_error, reason_of
from torch2mlx.sources.remote.snapshot import FetchedFiles, Snapshot, remote_weights
from torch2mlx.sources.remote.urls import shown
from torch2mlx.sources.weight_files import choose_file, choose_weights, kind_of

__all__ = ["file_system", "open_folder"]

_INDEX = ".index.json"
_LARGEST = 256 << 20  # bytes of a small file; the largest tokenizers have 40 MB
_PIECE = 4 << 20
# A folder of weights has files of these names and no others that matter.
_NAME = re.compile(r"\w[\w.\- ]*(/\w[\w.\- ]*)?")
_EXTRAS = {"s3": "s3", "s3a": "s3", "http": "http", "https": "http"}


def file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL in fsspec, and how it names what the URL names.

    Raises:
        SourceError: unknown scheme, or its library is not installed.
    """
    from fsspec.core import url_to_fs

    scheme = url.partition("://")[0].lower()
    try:
        system, path = url_to_fs(url)
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        remedy = f"pip install 'torch2mlx[{extra}]'" if extra else reason_of(error)
        raise SourceError(f"{shown(url)}: {scheme}:// needs a further library: {remedy}") from error
    except ValueError as error:
        raise SourceError(
            f"{shown(url)}: no such file or folder here, and fsspec does not know {scheme}://"
        ) from error
    return system, str(path)


class _Folder:
    """A remote folder: what is in it, and a local one for its small files."""

    def __init__(self, url: str) -> None:
        plain, mark, query = url.partition("?")
        self.base, self.query = plain.rstrip("/"), mark + query
        self.url = shown(url).rstrip("/")
        self.system, root = file_system(self.base)
        self.names = self._list(root)
        self._temporary = tempfile.TemporaryDirectory(prefix="torch2mlx-remote-")
        self.local = Path(self._temporary.name).resolve()

    def _list(self, root: str) -> list[str]:
        try:
            self.system.invalidate_cache()
            found = [str(entry["name"]) for entry in self.system.ls(root, detail=True)]
        except (FileNotFoundError, NotADirectoryError):
            raise SourceError(f"{self.url}: no such folder, or no access to it") from None
        except Exception as error:
            if not is_network_error(error):
                raise
            raise SourceError(f"{self.url}: cannot be listed: {reason_of(error)}") from error
        names = {PurePosixPath(name).name for name in found}
        return sorted(name for name in names if _NAME.fullmatch(name))

    def find(self, name: str) -> RemoteFile:
        """A file of the folder."""
        if not _NAME.fullmatch(name):
            raise SourceError(f"{self.url}: {name!r} is no name of a weight file")
        path = self.system._strip_protocol(f"{self.base}/{name}{self.query}")
        return RemoteFile.find(self.system, path, f"{self.url}/{name}")

    def fetch(self, name: str) -> Path:
        """A small file, in the local folder; its time of change stands for its version."""
        remote, path = self.find(name), self.local / name
        if remote.size > _LARGEST:
            raise SourceError(
                f"{remote.url}: {remote.size:,} bytes; at most {_LARGEST:,} are expected"
            )
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            for start in range(0, remote.size, _PIECE):
                file.write(remote.fetch(start, min(start + _PIECE, remote.size)))
        changed = int.from_bytes(hashlib.sha256(remote.version.encode()).digest()[:6], "big")
        os.utime(path, ns=(changed, changed))
        check_companion(self.local, path)
        return path


def open_folder(
    url: str,
    trust_remote_code: bool = False,
    accept_config: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[Snapshot, str | None]:
    """The checkpoint that a URL names, and the name of the weight file if it names one.

    Args:
        url: of a folder, a weight file or an index.
        trust_remote_code: also take Python files.
        accept_config: called with the config before anything else is read; may raise to refuse.

    Raises:
        SourceError: not found, not readable, or no checkpoint.
    """
    head, mark, query = url.partition("?")
    last = head.rstrip("/").rpartition("/")[2]
    file = last if kind_of(last) or last.endswith(_INDEX) else None
    folder = _Folder(head.rstrip("/").removesuffix(f"/{file}") + mark + query)
    try:
        return _snapshot(folder, file, trust_remote_code, accept_config), file
    except SourceError as error:
        raise SourceError(str(error).replace(str(folder.local), folder.url)) from error


def _snapshot(
    folder: _Folder,
    file: str | None,
    trust_remote_code: bool,
    accept_config: Callable[[dict[str, Any]], None] | None,
) -> Snapshot:
    if "config.json" in folder.names:
        folder.fetch("config.json")
        config = read_config(folder.local)
        if accept_config is not None:
            accept_config(config)

    def read_json(name: str) -> dict[str, Any]:
        return read_json_object(folder.fetch(name))

    if file is None:
        chosen = choose_weights(folder.url, folder.names, read_json)
    else:
        chosen = choose_file(folder.url, file, folder.names, read_json)
    for name in folder.names:  # what PyTorch may run, and what says where a text ends
        code = trust_remote_code and name.endswith(".py")
        if name == "generation_config.json" or code:
            folder.fetch(name)
    weights = remote_weights(folder.local, {name: folder.find(name) for name in chosen.files})
    companions = [name for name in folder.names if is_companion(name, trust_remote_code)]
    files = FetchedFiles(companions, folder.fetch, lambda name: folder.find(name).size)
    card = partial(folder.fetch, CARD) if CARD in folder.names else None
    return Snapshot(folder.local, weights, files, card)
