"""The generated model against the original, on given and on fresh inputs."""

from __future__ import annotations

from torch2mlx.compiler.parity.calls import check_calls, run_calls
from torch2mlx.compiler.parity.gate import LIMITS, Agreement, check_parity
from torch2mlx.compiler.parity.original import run_original
from torch2mlx.compiler.parity.running import call_model, import_model, mlx_array
from torch2mlx.compiler.parity.stored import stored_cases, stored_examples

__all__ = [
    "LIMITS",
    "Agreement",
    "call_model",
    "check_calls",
    "check_parity",
    "import_model",
    "mlx_array",
    "run_calls",
    "run_original",
    "stored_cases",
    "stored_examples",
]
