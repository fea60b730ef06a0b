"""Which strategy suits a model and a machine, told from headers alone."""

from __future__ import annotations

from torch2mlx.selection.strategies import Selection, Strategy, select_strategies

__all__ = ["Selection", "Strategy", "select_strategies"]
