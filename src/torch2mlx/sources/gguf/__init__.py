"""GGUF files, read as the Hugging Face checkpoints they were made from."""

from __future__ import annotations

from torch2mlx.sources.gguf.checkpoint import open_gguf
from torch2mlx.sources.gguf.source import GGUFSource

__all__ = ["GGUFSource", "open_gguf"]
