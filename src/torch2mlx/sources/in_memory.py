"""Tensors that a program holds, read as those of a file are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torch2mlx.dtypes import dtype_from_torch
from torch2mlx.errors import SourceError
from torch2mlx.sources.base import TensorInfo, TensorSource

if TYPE_CHECKING:
    import torch

__all__ = ["MemorySource"]

_MEMORY = Path("memory")


class MemorySource(TensorSource):
    """Tensors of torch, not copied.

    Args:
        tensors: by name; complex128, which no file holds, is read as complex64.

    Raises:
        SourceError: a tensor has no data, is sparse, or of a type that MLX lacks; names all.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        import torch

        self._tensors = {
            name: (t.detach().to(torch.complex64) if t.dtype == torch.complex128 else t.detach())
            for name, t in tensors.items()
        }
        wrong = [f"{n} ({why})" for n, t in self._tensors.items() if (why := _obstacle(t))]
        if wrong:
            raise SourceError(f"tensors that cannot be read: {', '.join(wrong)}")
        self._infos = {
            name: TensorInfo(name, dtype_from_torch(t.dtype), tuple(t.shape), _MEMORY)
            for name, t in self._tensors.items()
        }

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._infos

    @property
    def files(self) -> tuple[Path, ...]:
        return ()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray[Any, Any]:
        tensor = self._tensors[name]
        if tensor.ndim:
            tensor = tensor[start:stop]
        return _bits(tensor, self._infos[name])


def _obstacle(tensor: torch.Tensor) -> str:
    import torch

    if tensor.device.type == "meta":
        return "no data: it is on the meta device"
    if tensor.layout != torch.strided or tensor.is_quantized:
        return f"{tensor.layout}" if tensor.layout != torch.strided else "quantized by torch"
    try:
        dtype_from_torch(tensor.dtype)
    except KeyError:
        return f"{tensor.dtype} has no counterpart"
    return ""


def _bits(tensor: torch.Tensor, info: TensorInfo) -> np.ndarray[Any, Any]:
    import torch

    tensor = tensor.cpu().contiguous().resolve_conj().resolve_neg()
    if info.dtype.name == "BF16":
        tensor = tensor.view(torch.int16)
    elif info.dtype.name.startswith("F8"):
        tensor = tensor.view(torch.uint8)
    values: np.ndarray[Any, Any] = tensor.numpy()
    return values.view(info.dtype.numpy)
