"""Where tensors come from: safetensors, torch zip files and GGUF, local or on the hub."""

from __future__ import annotations

from torch2mlx.sources.base import Checkpoint, Packed, TensorInfo, TensorSource
from torch2mlx.sources.checkpoint import open_checkpoint

__all__ = ["Checkpoint", "Packed", "TensorInfo", "TensorSource", "open_checkpoint"]
