"""A remote checkpoint as it was when it was opened: small files here, weights there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PosixPath

from torch2mlx.sources.remote.ahead import ReadAhead
from torch2mlx.sources.remote.files import RemoteFile, RemotePath

__all__ = ["FetchedFiles", "Snapshot", "remote_weights"]

_CONNECTIONS = 8


class FetchedFiles(Mapping[str, Path]):
    """Small files by name, fetched when they are first asked for.

    Args:
        names: what there is.
        fetch: fetches one of them.
        size: its bytes, without fetching it.
    """

    def __init__(
        self, names: Iterable[str], fetch: Callable[[str], Path], size: Callable[[str], int]
    ) -> None:
        self._names = tuple(sorted(names))
        self._fetch = fetch
        self.size = size
        self._found: dict[str, Path] = {}

    def __getitem__(self, name: str) -> Path:
        if name not in self._found:
            if name not in self._names:
                raise KeyError(name)
            self._found[name] = self._fetch(name)
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True)
class Snapshot:
    """Where the files of a checkpoint are.

    Attributes:
        folder: local, with config and index.
        weights: weight files that are read where they are, by name.
        companions: tokenizer and other small files; None: all that `folder` has.
        card: fetches the model card; None: `folder` has it, or there is none.
    """

    folder: Path
    weights: Mapping[str, Path] = field(default_factory=dict)
    companions: Mapping[str, Path] | None = None
    card: Callable[[], Path] | None = None


def remote_weights(folder: Path, files: Mapping[str, RemoteFile]) -> dict[str, Path]:
    """Paths of weight files that are read where they are; their first bytes are fetched at once.

    Args:
        folder: local, where config and index are.
        files: by name.

    Raises:
        SourceError: one cannot be read.
    """
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        list(pool.map(lambda file: file.head, files.values()))
    ahead = ReadAhead()
    return {
        name: RemotePath.of(PosixPath(folder / name), file, ahead) for name, file in files.items()
    }
