"""What a folder of a port has beside its weights: config, tokenizer, index, model file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch2mlx.architectures.port import Port
from torch2mlx.errors import SourceError
from torch2mlx.packaging.config import output_config, write_config, write_generation_config
from torch2mlx.packaging.index import WeightSummary, leaf_paths, write_index
from torch2mlx.packaging.stopping import find_stop_ids
from torch2mlx.packaging.tokenizer import (
    check_tokenizer,
    copy_tokenizer_files,
    has_tokenizer,
    load_tokenizer,
)
from torch2mlx.packaging.tokenizer_json import write_tokenizer_json
from torch2mlx.planning.plan import Plan, is_token_embedding
from torch2mlx.precision import CONFIG_KEY, with_precision
from torch2mlx.progress import Progress
from torch2mlx.sources.base import Checkpoint

__all__ = ["package_port"]


def package_port(
    folder: Path,
    checkpoint: Checkpoint,
    plan: Plan,
    port: Port,
    precision: Mapping[str, str],
    progress: Progress,
    trust_remote_code: bool = False,
) -> tuple[WeightSummary, dict[str, Any], tuple[str, ...]]:
    """Write everything beside the weights, and check the tokenizer against the source's.

    Args:
        folder: of the output, its weights written.
        checkpoint: what is converted.
        plan: how.
        port: that reads the folder.
        precision: types that modules compute in.
        progress: listener.
        trust_remote_code: run the checkpoint's tokenizer code.

    Returns:
        sizes of the weights, `TokenizerReport.to_dict()`, and what a user should know.

    Raises:
        SourceError: files of the tokenizer that cannot be read, or no weights.
        ParityError: the written tokenizer differs.
    """
    with progress.stage("Copying and checking the tokenizer"):
        notes = list(copy_tokenizer_files(checkpoint.tokenizer_files, folder))
        tokenizer: Any = None
        if has_tokenizer(folder):
            try:
                tokenizer = load_tokenizer(folder, trust_remote_code)
            except SourceError:  # the tokenizer's own check reports it
                tokenizer = None
            else:
                told = write_tokenizer_json(tokenizer, folder, trust_remote_code)
                notes.extend([told] if told else [])
        stops = find_stop_ids(
            checkpoint.config,
            checkpoint.generation_config,
            tokenizer,
            None if port.model_file else port.module,
        )
        notes.extend(stops.notes)
        written = output_config(
            port.config,
            plan.quantization,
            eos_token_id=stops.ids,
            dtype=plan.dtype.torch_name if plan.dtype else None,
        )
        if precision:
            written[CONFIG_KEY] = precision
        if port.model_file:
            written["model_file"] = port.module
            source = with_precision(port.model_file, precision)
            (folder / port.module).write_text(source, encoding="utf-8")
        write_config(folder, written)
        if write_generation_config(folder, checkpoint.generation_config, stops.ids):
            notes.append("generation_config.json: eos_token_id united with the other sources'")
        summary = write_index(
            folder,
            {o.module: o.scheme.bits for o in plan.outputs if o.scheme is not None},
            leaf_paths(port.build()),
        )
        embeddings = (o.expr for o in plan.outputs if is_token_embedding(o.name))
        rows = next((expr.shape[0] for expr in embeddings), None)
        report = check_tokenizer(checkpoint.tokenizer_source, folder, trust_remote_code, rows)
        report.require()
    for warning in (*report.warnings, *notes):
        progress.note(warning)
    return summary, report.to_dict(), tuple(notes)
