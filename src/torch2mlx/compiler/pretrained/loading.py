"""A model of transformers from its folder, every weight found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from torch2mlx.compiler.pipelines.source import checked_weights
from torch2mlx.errors import SourceError, UnsupportedError

__all__ = ["Loaded", "load_pretrained", "own_dtype"]


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model in memory.

    Attributes:
        model: in float32, for inference.
        unused: tensors of the files that the class has no place for.
    """

    model: Any
    unused: tuple[str, ...]


def load_pretrained(folder: Path, class_name: str) -> Loaded:
    """The model of a checkpoint's folder.

    Args:
        folder: with config.json and weights.
        class_name: of transformers.

    Raises:
        SourceError: transformers cannot load it, or weights are missing, which it would draw.
        UnsupportedError: it has no such class.
    """
    import transformers

    from torch2mlx.verification.reference import quiet

    kind = getattr(transformers, class_name, None)
    if kind is None:
        raise UnsupportedError(
            f"{folder}: transformers {transformers.__version__} has no {class_name}, which "
            "config.json names; update transformers, or compile the module from code of your own"
        )
    try:
        with quiet():
            model, info = kind.from_pretrained(
                folder,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except Exception as error:  # whatever a damaged folder provokes
        raise SourceError(
            f"{folder}: transformers cannot load it: {str(error)[:400]}; download it again"
        ) from error
    missing = [*info["missing_keys"], *(str(m) for m in info["mismatched_keys"])]
    checked_weights(str(folder), class_name, missing)
    return Loaded(model.eval(), tuple(sorted(map(str, info["unexpected_keys"]))))


def own_dtype(config: Mapping[str, Any], model: Any) -> str | None:
    """The half type of a checkpoint, where transformers itself computes in it all through.

    Args:
        config: of the folder.
        model: of it.
    """
    name = str(config.get("dtype") or config.get("torch_dtype"))
    exact = getattr(model, "_keep_in_fp32_modules", None)  # such as T5's, which overflow
    halves = ("bfloat16",) if exact else ("bfloat16", "float16")
    return name if name in halves else None
