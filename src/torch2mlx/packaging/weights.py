"""Weight files of one output in its staging folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch2mlx.conversion.executor import execute
from torch2mlx.packaging.staging import Staging
from torch2mlx.planning.expressions import Reader
from torch2mlx.planning.plan import Plan
from torch2mlx.progress import Progress

__all__ = ["write_weights"]


def write_weights(
    plan: Plan,
    reader: Reader,
    staging: Staging,
    *,
    memory_limit: int,
    progress: Progress,
    check: Callable[[], None],
) -> list[Path]:
    """Write what an earlier run did not finish.

    Args:
        plan: of the output.
        reader: the source of stored tensors.
        staging: where the files are written.
        memory_limit: bytes that resident memory may grow by.
        progress: listener.
        check: called before a file counts as finished; what it raises ends the run.

    Returns:
        the files, each flushed to the disk.

    Raises:
        NumericError, DestinationError, OptionError: see `execute_together`.
    """
    finished = staging.records()
    with progress.stage("Writing weights", plan.nbytes) as advance:
        done = [shard for shard in plan.shards if shard.file in finished]
        if done:
            progress.note(f"going on: {len(done)} of {len(plan.shards)} weight files are finished")
            advance(sum(shard.nbytes for shard in done))
        return execute(
            plan,
            reader,
            staging.folder,
            memory_limit=memory_limit,
            progress=advance,
            journal=staging.journal,
            check=check,
        )
