"""Diagnose a checkpoint from its headers and config: what it is, and what could go wrong."""

from __future__ import annotations

from torch2mlx.inspection.checkpoint import Inspection, inspect_checkpoint

__all__ = ["Inspection", "inspect_checkpoint"]
