"""Python source of `mlx.nn.Module` classes from a program, in the shape of the original."""

from __future__ import annotations

from torch2mlx.compiler.codegen.file import GeneratedModel, generate

__all__ = ["GeneratedModel", "generate"]
