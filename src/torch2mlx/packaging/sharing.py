"""Weight files of one source's outputs, shared among the processes of a team.

The leading process deals the files out; every process, itself included, writes its share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch2mlx.conversion import executor
from torch2mlx.conversion.identity import differences, same_work
from torch2mlx.conversion.journal import Journal
from torch2mlx.conversion.team import Team, deal_out
from torch2mlx.errors import DestinationError
from torch2mlx.packaging.lock import work_folder
from torch2mlx.packaging.staging import Staging, check_destination
from torch2mlx.planning.expressions import Reader
from torch2mlx.planning.plan import Plan
from torch2mlx.progress import Progress

__all__ = ["SharedOutput", "Writing", "help_writing", "write_shared"]


@dataclass(frozen=True)
class SharedOutput:
    """One output.

    Attributes:
        destination: its folder, once it is published.
        plan: what is written.
        identity: everything that decides its bytes.
    """

    destination: Path
    plan: Plan
    identity: Mapping[str, Any]


@dataclass(frozen=True)
class Writing:
    """How all outputs are written.

    Attributes:
        reader: the source of stored tensors.
        memory_limit: bytes that resident memory may grow by.
        check: called before a file counts as finished; what it raises ends the run.
        read_again: this run reads the files once more.
    """

    reader: Reader
    memory_limit: int
    check: Callable[[], None]
    read_again: bool


def write_shared(
    team: Team,
    outputs: Sequence[SharedOutput],
    stagings: Sequence[Staging],
    config: Mapping[str, Any],
    writing: Writing,
    progress: Progress,
) -> None:
    """Deal out what earlier runs did not finish, write this process's share, wait for the others.

    Args:
        team: led by this process.
        outputs: in one pass over their source.
        stagings: where each is written.
        config: of the checkpoint, with the port that was chosen.
        writing: how.
        progress: listener.

    Raises:
        NumericError, DestinationError, OptionError: see `execute_together`.
    """
    missing = [
        (staging, shard)
        for output, staging in zip(outputs, stagings, strict=True)
        for shard in output.plan.shards
        if shard.file not in staging.records()
    ]
    ranks = deal_out([shard for _, shard in missing], team.size)
    dealt: dict[Staging, dict[str, int]] = {staging: {} for staging in stagings}
    for (staging, shard), rank in zip(missing, ranks, strict=True):
        dealt[staging][shard.file] = rank
    team.tell(
        "dealt",
        {
            "config": config,
            "outputs": {
                output.destination.name: {"identity": output.identity, "files": dealt[staging]}
                for output, staging in zip(outputs, stagings, strict=True)
            },
        },
    )
    targets = [
        executor.Target(output.plan, staging.folder, staging.journal, _share(dealt[staging], team))
        for output, staging in zip(outputs, stagings, strict=True)
    ]
    total = sum(output.plan.nbytes for output in outputs)
    done = total - sum(shard.nbytes for _, shard in missing)
    with progress.stage("Converting", total) as advance:
        if done:
            count = sum(len(output.plan.shards) for output in outputs)
            progress.note(f"going on: {count - len(missing)} of {count} weight files are finished")
            advance(done)
        _write(team, targets, writing, advance)
        team.hear_all("written")
    for staging in stagings:
        assert staging.journal is not None
        staging.journal.join()


def help_writing(
    team: Team, dealt: Mapping[str, Any], outputs: Sequence[SharedOutput], writing: Writing
) -> None:
    """Write the share of a process that does not lead, and tell the leading one.

    Args:
        team: of this process.
        dealt: what the leading process told under this name.
        outputs: as this process sees them.
        writing: how.

    Raises:
        DestinationError: this process sees other work than the leading one.
    """
    with ExitStack() as stack:
        targets = []
        for output in outputs:
            share = dealt["outputs"].get(output.destination.name)
            if share is None:  # published by an earlier run
                continue
            if not same_work(share["identity"], output.identity):
                raise DestinationError(
                    f"process {team.rank} does not see what process 0 sees: "
                    f"{'; '.join(differences(share['identity'], output.identity))}"
                )
            work = work_folder(check_destination(output.destination))
            journal = Journal(work, output.identity, rank=team.rank)
            stack.callback(journal.close)
            mine = _share(share["files"], team)
            targets.append(executor.Target(output.plan, work / "output", journal, mine))
        _write(team, targets, writing, lambda _: None)
    team.tell(f"written/{team.rank}", True)


def _share(files: Mapping[str, int], team: Team) -> frozenset[str]:
    """Names of the files that this process writes."""
    return frozenset(name for name, rank in files.items() if rank == team.rank)


def _write(
    team: Team, targets: Sequence[executor.Target], writing: Writing, advance: Callable[[int], None]
) -> None:
    def progress(count: int) -> None:
        team.check()
        advance(count)

    executor.execute_together(
        targets,
        writing.reader,
        memory_limit=writing.memory_limit,
        progress=progress,
        check=writing.check,
        processes=team.local_size,
        read_again=writing.read_again,
    )
