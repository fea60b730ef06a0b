"""PyTorch models as MLX models, proven equal to the original.

    import torch2mlx

    torch2mlx.inspect("model/")                      # what is it, what could go wrong
    torch2mlx.plan("model/", fit="16GB")             # ways to convert it, side by side
    torch2mlx.convert("model/", "out/", q_bits=4)    # streamed, checked, published at the end
    torch2mlx.verify("model/", "out/")               # any MLX folder against its source
    torch2mlx.generate("out/", "Hello")
    torch2mlx.bench(["out/"], torch="model/")        # speed and memory beside PyTorch
    model, tokenizer = torch2mlx.load("out/")        # each module in its type, for code of your own

Everything raises `torch2mlx.Torch2MLXError` or one of its subclasses (`torch2mlx.errors`) for
what a user can act on.  Importing this package loads neither torch nor MLX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch2mlx.errors import Torch2MLXError

if TYPE_CHECKING:
    from torch2mlx.api import (
        bench,
        convert,
        doctor,
        generate,
        inspect,
        load,
        plan,
        report,
        upload,
        verify,
        verify_certificate,
    )

__version__ = "0.1.0"

__all__ = [
    "Torch2MLXError",
    "__version__",
    "bench",
    "convert",
    "doctor",
    "generate",
    "inspect",
    "load",
    "plan",
    "report",
    "upload",
    "verify",
    "verify_certificate",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from torch2mlx import api

        return getattr(api, name)
    raise AttributeError(f"module 'torch2mlx' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
