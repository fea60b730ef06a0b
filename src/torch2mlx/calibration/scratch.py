"""Calibrated tensors and activation streams on the disk, so that a killed run goes on.

    settings.json               what was asked for; another question starts anew
    layer-00007/weights.safetensors, stream.npy, report.json

A layer's folder gets its name once everything in it is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torch2mlx.conversion.journal import sync
from torch2mlx.packaging.manifest import library_versions
from torch2mlx.sources.base import TensorInfo, TensorSource
from torch2mlx.sources.safetensors import SafetensorsSource

if TYPE_CHECKING:
    import torch

__all__ = ["PREFIX", "Overlay", "Scratch", "Stream", "save_step"]

Array = np.ndarray[Any, Any]

PREFIX = "calibrated"
"""With the digest of the calibration and a colon before the names of calibrated tensors, which
are otherwise those of the written ones: other calibrations are other sources."""


class Scratch:
    """The working folder of one calibration.

    Args:
        folder: created where it does not exist.
        settings: plain values that decide the result; a folder of others, or of other versions of
            the libraries that compute it, is emptied.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        path = folder / "settings.json"
        settings = {**settings, "versions": library_versions()}
        text = json.dumps(settings, sort_keys=True, indent=1)
        self.prefix = f"{PREFIX}-{hashlib.sha256(text.encode()).hexdigest()[:16]}:"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            path.write_text(text, encoding="utf-8")

    def done(self, step: str) -> bool:
        """Whether a step's folder is complete."""
        return (self.folder / step).is_dir()

    @contextmanager
    def writing(self, step: str) -> Iterator[Path]:
        """A folder that gets the step's name at the end."""
        partial = self.folder / f"{step}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        for path in (*partial.iterdir(), partial):  # a name that power cannot part from its content
            sync(path)
        partial.rename(self.folder / step)
        sync(self.folder)

    def forget_stream(self, step: str) -> None:
        """Delete the activations of a step that the next one has consumed."""
        (self.folder / step / "stream.npy").unlink(missing_ok=True)

    @property
    def weight_files(self) -> list[Path]:
        """Files of calibrated tensors; those of distillation, which replace others, apart."""
        return sorted(self.folder.glob("[!d]*/weights.safetensors"))

    @property
    def distilled_files(self) -> list[Path]:
        """Files of scales and biases that replace calibrated ones."""
        return sorted(self.folder.glob("distilled/weights.safetensors"))

    def reports(self) -> dict[str, Any]:
        """What was noted of each module."""
        found: dict[str, Any] = {}
        for path in sorted(self.folder.glob("*/report.json")):
            found.update(json.loads(path.read_text(encoding="utf-8")))
        return found

    def remove(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.folder, ignore_errors=True)


def save_step(folder: Path, tensors: Mapping[str, torch.Tensor], report: Mapping[str, Any]) -> None:
    """Write the tensors and notes of one step."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if tensors:
        try:
            save_file(dict(tensors), folder / "weights.safetensors")
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            reason = os.strerror(int(number[1]))
            raise OSError(int(number[1]), reason, str(folder)) from error
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")


class Stream:
    """Activations on the disk, float32 [lanes, sequences, tokens, ...].

    The file is mapped only while a part is read or written, so none of it counts as memory.

    Args:
        path: of the .npy file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def create(cls, path: Path, shape: Sequence[int]) -> Stream:
        """A new file, of zeros."""
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=tuple(shape))
        return cls(path)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole."""
        return np.load(self._path, mmap_mode="r").shape  # type: ignore[no-any-return]

    def read(self, lane: int, batch: slice) -> torch.Tensor:
        """The activations of some sequences, a copy."""
        import torch

        return torch.from_numpy(np.array(np.load(self._path, mmap_mode="r")[lane, batch]))

    def write(self, lane: int, batch: slice, values: torch.Tensor) -> None:
        """Set those of some sequences."""
        np.load(self._path, mmap_mode="r+")[lane, batch] = values.cpu().numpy()


class Overlay(TensorSource):
    """A checkpoint's tensors, and calibrated ones under their names with `PREFIX`.

    Args:
        source: the checkpoint's.
        files: of calibrated tensors.
        replacements: of those that replace some of them.
    """

    def __init__(
        self, source: TensorSource, files: list[Path], replacements: list[Path] | None = None
    ) -> None:
        self._source = source
        self._calibrated = SafetensorsSource(files)
        self._distilled = SafetensorsSource(replacements) if replacements else None

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._source.tensors

    @property
    def calibrated(self) -> Mapping[str, TensorInfo]:
        """The calibrated tensors by their written names."""
        return self._calibrated.tensors

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        if name.startswith(PREFIX):
            return self._owner(name).read(name.partition(":")[2], start, stop)
        return self._source.read(name, start, stop)

    def read_flat(self, name: str, start: int, stop: int) -> Array:
        if name.startswith(PREFIX):
            return self._owner(name).read_flat(name.partition(":")[2], start, stop)
        return self._source.read_flat(name, start, stop)

    def _owner(self, name: str) -> SafetensorsSource:
        distilled = self._distilled
        if distilled is not None and name.partition(":")[2] in distilled.tensors:
            return distilled
        return self._calibrated

    @property
    def files(self) -> tuple[Path, ...]:
        return self._source.files

    def close(self) -> None:
        self._calibrated.close()
        if self._distilled is not None:
            self._distilled.close()
        self._source.close()
