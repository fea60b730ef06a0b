"""The written folder against PyTorch with exactly its values: what MLX loads is what was meant.

Both sides compute in float32.  PyTorch gets the values that the files hold, dequantized and
carried back through the mapping, so neither the cast nor the quantization counts as a difference.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torch2mlx.dtypes import to_torch
from torch2mlx.errors import PlanError
from torch2mlx.verification import tolerance
from torch2mlx.verification.candidate import open_folder, run_candidate, to_float32
from torch2mlx.verification.comparison import (
    compare_traces,
    difference,
    sample_tokens,
)
from torch2mlx.verification.details import ReferenceRun, thin_logits
from torch2mlx.verification.generation import continue_text, shared_start
from torch2mlx.verification.reference import (
    Trace,
    build_reference,
    match_rounding,
    read_state,
    run_reference,
)
from torch2mlx.verification.report import Comparison

if TYPE_CHECKING:
    import torch

    from torch2mlx.planning.expressions import Expr, Reader
    from torch2mlx.planning.plan import Output

__all__ = ["WrittenRun", "examine_written", "written_state"]

Array = np.ndarray[Any, Any]


def written_state(
    outputs: Sequence[Output], files: Sequence[Path], state: Mapping[str, Expr], reader: Reader
) -> dict[str, torch.Tensor]:
    """A PyTorch state dict with the values of written MLX files, dequantized, in float32.

    Args:
        outputs: what each parameter was written from.
        files: the written weight files.
        state: the checkpoint's tensors, the very expressions that `outputs` contain.
        reader: of the checkpoint, for elements that no output holds.

    Elements that no output holds are the checkpoint's, so that PyTorch computes with them: what
    a run on text does not use (image towers) plays no part, and what the port wrongly leaves
    out shows as a difference.  Only an output head that no output holds is left out, since it is
    tied to the embedding, whose written values count.

    Raises:
        SourceError: a written file is damaged.
    """
    import torch

    from torch2mlx.planning.inverse import restore_state
    from torch2mlx.planning.plan import is_output_head
    from torch2mlx.planning.regions import full
    from torch2mlx.sources.safetensors import SafetensorsSource

    source = SafetensorsSource(files)
    read = _value_reader(outputs, source)
    result = {}
    for restored in restore_state({o.name: o.expr for o in outputs}, read, state):
        expr = state[restored.name]
        if restored.values is None:
            if not is_output_head(restored.name):
                result.update(read_state({restored.name: expr}, reader))
            continue
        values = torch.from_numpy(restored.values)
        if restored.covered is not None:
            rest = to_torch(expr.read(full(expr.shape), reader), expr.dtype).float()
            values = torch.where(torch.from_numpy(restored.covered), values, rest)
        result[restored.name] = values
    source.close()
    return result


def _value_reader(outputs: Sequence[Output], source: Reader) -> Callable[[str, int, int], Array]:
    """Rows of a parameter in float32, whatever it is written as."""
    from torch2mlx.quantization.kernel import dequantize_rows

    known = {output.name: output for output in outputs}

    def read(name: str, start: int, stop: int) -> Array:
        output = known[name]
        if output.scheme is None:
            spec = output.specs[0]
            bits = source.read(spec.name, start, stop) if spec.shape else source.read(spec.name)
            return to_torch(bits, spec.dtype).float().numpy().reshape(bits.shape)
        parts = {
            spec.name.rpartition(".")[2]: source.read(spec.name, start, stop)
            for spec in output.specs
        }
        scales = next(s for s in output.specs if s.name.endswith(".scales"))
        return dequantize_rows(parts, scales.dtype, output.scheme)

    return read


@dataclass(frozen=True, eq=False)
class WrittenRun:
    """One run of a written folder beside PyTorch.

    Attributes:
        comparison: the verdict.
        reference: PyTorch's side of it, for a later check.
        text: ids that the folder writes after a prompt; empty without one.
    """

    comparison: Comparison
    reference: ReferenceRun
    text: tuple[int, ...] = ()


def examine_written(
    folder: Path,
    config: Mapping[str, Any],
    state: Mapping[str, torch.Tensor],
    *,
    prompt: Sequence[int] = (),
    bound: float = tolerance.WRITTEN,
    checkpoint_folder: Path | None = None,
    trust_remote_code: bool = False,
) -> WrittenRun:
    """Open a written folder as mlx-lm does and compare it with PyTorch on the same values.

    The tokens are 16 random ones.  A prompt goes before them, and after it what PyTorch writes:
    as far as MLX finds the same token most likely at every place, MLX writes the same text.

    Args:
        folder: the MLX folder, quantized or not.
        config: the checkpoint's config.json.
        state: the folder's values in PyTorch's terms, see `written_state`.
        prompt: ids of a text to continue; none: random tokens only.
        bound: tolerance of the logits' relative difference.
        checkpoint_folder: where code of the checkpoint's own lies.
        trust_remote_code: run that code.

    Memory: the float32 weights once; then the written weights.

    Raises:
        PlanError: mlx-lm cannot load the folder.
    """
    try:
        model, written = open_folder(folder, config)
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        raise PlanError(f"{folder}: mlx-lm cannot load it: {error}; convert it again") from error
    reference = build_reference(config, state, checkpoint_folder, trust_remote_code)
    match_rounding(reference, type(model).__module__)
    text = continue_text(reference, prompt) if prompt else ()
    tokens = np.concatenate(
        [np.asarray([*prompt, *text], dtype=np.int64), sample_tokens(config, 16)]
    )
    torch_side = run_reference(reference, tokens)
    del reference
    gc.collect()
    mlx_side = run_candidate(to_float32(model), tokens)
    model_type = str(written.get("model_type"))
    found = compare_traces(torch_side, mlx_side, "written folder", model_type, bound)
    return WrittenRun(
        found,
        _reference_run(tokens, torch_side, mlx_side, bound),
        text[: shared_start(text, mlx_side.logits[len(prompt) - 1 :].argmax(-1))] if text else (),
    )


def _reference_run(tokens: Array, torch_side: Trace, mlx_side: Trace, bound: float) -> ReferenceRun:
    columns, kept = thin_logits(torch_side.logits)
    gap = difference("logits", kept, mlx_side.logits[:, columns])
    return ReferenceRun(tokens, columns, kept, torch_side.logits.argmax(-1), gap.relative, bound)
