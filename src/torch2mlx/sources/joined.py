"""Several sources as one, under names that do not meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from torch2mlx.sources.base import TensorInfo, TensorSource

__all__ = ["JoinedSource", "PrefixedSource"]


class PrefixedSource(TensorSource):
    """A source whose names all begin with a prefix of their own.

    Args:
        prefix: such as "adapter:", so that names do not meet those of another source.
        source: where the tensors are read.
    """

    def __init__(self, prefix: str, source: TensorSource) -> None:
        self._prefix = prefix
        self._source = source
        self._infos = {
            prefix + name: replace(info, name=prefix + name)
            for name, info in source.tensors.items()
        }

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._infos

    @property
    def files(self) -> tuple[Path, ...]:
        return self._source.files

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray[Any, Any]:
        return self._source.read(name.removeprefix(self._prefix), start, stop)

    def read_flat(self, name: str, start: int, stop: int) -> np.ndarray[Any, Any]:
        return self._source.read_flat(name.removeprefix(self._prefix), start, stop)

    def close(self) -> None:
        self._source.close()


class JoinedSource(TensorSource):
    """Several sources whose names differ.

    Args:
        sources: each name belongs to the first that has it.
    """

    def __init__(self, *sources: TensorSource) -> None:
        self._sources = sources
        self._owner = {name: s for s in reversed(sources) for name in s.tensors}

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return {name: source.tensors[name] for name, source in self._owner.items()}

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(sorted(f for source in self._sources for f in source.files))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray[Any, Any]:
        return self._source(name).read(name, start, stop)

    def read_flat(self, name: str, start: int, stop: int) -> np.ndarray[Any, Any]:
        return self._source(name).read_flat(name, start, stop)

    def _source(self, name: str) -> TensorSource:
        # Virtual tensors are readable, but not listed; only a checkpoint has any.
        return self._owner.get(name, self._sources[0])

    def close(self) -> None:
        for source in self._sources:
            source.close()
