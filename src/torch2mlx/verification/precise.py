"""The written folder in the types that it is meant to compute in, against PyTorch in float32."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch2mlx.errors import ParityError
from torch2mlx.planning.plan import Output
from torch2mlx.precision import describe
from torch2mlx.sources.base import Checkpoint
from torch2mlx.verification import tolerance
from torch2mlx.verification.agreement import written_state
from torch2mlx.verification.budgets import TorchSide, evaluation_windows
from torch2mlx.verification.candidate import open_folder, run_candidate
from torch2mlx.verification.comparison import difference
from torch2mlx.verification.reference import match_rounding, run_reference
from torch2mlx.verification.report import Budget

__all__ = ["measure_precision"]

_TOKENS = 16  # MLX computes half types slowly on a CPU


def measure_precision(
    checkpoint: Checkpoint,
    outputs: Sequence[Output],
    folder: Path,
    files: Sequence[Path],
    policy: Mapping[str, str],
    *,
    trust_remote_code: bool = False,
) -> Budget:
    """Run the folder with a policy of types and compare its logits with PyTorch's.

    Args:
        checkpoint: the source.
        outputs: what each parameter was written from.
        folder: the written folder.
        files: its weight files.
        policy: pattern → type.
        trust_remote_code: allow the checkpoint's own code on the PyTorch side.

    Both have the written values; the budget's bound is that of the narrowest type in use.

    Raises:
        ParityError: the bound does not hold.
    """
    from torch2mlx.compiler.runtime.precision import set_precision

    side = TorchSide(checkpoint, trust_remote_code)
    tokens = evaluation_windows(checkpoint, trust_remote_code, 1, _TOKENS)[0][0]
    model: Any = open_folder(folder, checkpoint.config)[0]
    state = written_state(outputs, files, checkpoint.state, checkpoint.source)
    reference = side.model(state)
    match_rounding(reference, type(model).__module__)
    expected = run_reference(reference, tokens).logits
    del reference, state
    gc.collect()
    set_precision(model, dict(policy))
    found = run_candidate(model, tokens).logits[:, : expected.shape[1]]
    gap = difference("logits", expected, found)
    stored = {o.expr.dtype.torch_name for o in outputs if o.expr.dtype.floating}
    types = stored | set(policy.values())
    bound = max(tolerance.HALF.get(name, tolerance.WRITTEN) for name in types)
    budget = Budget(
        "runtime precision",
        {"relative_l2": gap.relative},
        {"relative_l2": bound},
        note=f"logits of {_TOKENS} tokens, MLX with {describe(policy)}, PyTorch float32",
    )
    if not budget.passed:
        raise ParityError(
            f"{folder.name}: with --runtime-precision {describe(policy)} the MLX model's logits "
            f"differ from PyTorch's by {gap.relative:.1e} (relative L2), expected at most "
            f"{bound:.0e}; infinite where a type overflows. Nothing was published; let more "
            "modules compute in float32, or try --runtime-precision auto"
        )
    return budget
