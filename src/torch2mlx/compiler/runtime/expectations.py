"""Values that generated code was made for."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

__all__ = ["require"]


def require(x: mx.array, expected: Any, what: str) -> None:
    """Raise ValueError where a value is not the one that this code was made for."""
    wanted = mx.array(expected)
    if x.shape != wanted.shape or not mx.array_equal(x, wanted.astype(x.dtype)).item():
        found = x.tolist() if x.size <= 16 else f"an array {list(x.shape)}"
        made_for = wanted.tolist() if wanted.size <= 16 else "the values of the example"
        raise ValueError(
            f"{what}: {found}, but this model was converted for {made_for}; "
            "convert it with an example that has these values"
        )
