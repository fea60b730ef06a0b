"""The generated model against the original, on given and on fresh inputs."""

from __future__ import annotations

from torch2mlx.compiler.parity.gate import LIMITS, Agreement, check_parity
from torch2mlx.compiler.parity.original import run_original
from torch2mlx.compiler.parity.running import call_model, import_model, mlx_array

__all__ = [
    "LIMITS",
    "Agreement",
    "call_model",
    "check_parity",
    "import_model",
    "mlx_array",
    "run_original",
]
