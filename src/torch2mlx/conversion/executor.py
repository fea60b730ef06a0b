"""Carry out plans: stream row blocks from source tensors into finished files.

Every offset is known, so a block goes to its place as soon as it is computed.  Worker threads
read, compute and write a block each; the calling thread hands out blocks, takes them back in
order, hashes them, and puts finished files to disk:

    caller   hand out ── take back, hash ── ... ── last block: hash, sync, journal ── next file
    worker   read → compute → write         (one block)
    worker              read → compute → write
    syncer        64 MB to disk

Blocks in work are bounded by what they cost and by the resident memory that is measured while they
run.  Each output has one file in work, so at most that one is made again after a stop.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from torch2mlx.conversion.blocks import Part, parts_of, row_regions
from torch2mlx.conversion.journal import Journal
from torch2mlx.conversion.memory import Meter
from torch2mlx.conversion.shard_file import ShardFile
from torch2mlx.errors import OptionError
from torch2mlx.planning.expressions import Expr, Reader
from torch2mlx.planning.functions import whole_bytes
from torch2mlx.planning.plan import Plan
from torch2mlx.planning.regions import Region
from torch2mlx.planning.shards import ShardPlan
from torch2mlx.sources.local_files import page_cache_holds

__all__ = ["DEFAULT_MEMORY_LIMIT", "Target", "execute", "execute_together"]

DEFAULT_MEMORY_LIMIT = 10**9  # bytes above the import footprint
_MIN_MEMORY_LIMIT = 64 * 10**6

_COPIES = 5  # of a block: file bytes, MLX input, MLX output, scratch, and what malloc keeps
_WHOLE_COPIES = 3  # of tensors that a function needs whole
_MAX_BLOCK = 4 << 20  # larger blocks leave the caches and are slower
_MIN_BLOCK = 1 << 16
_MAX_WORKERS = 16

Array = np.ndarray[Any, Any]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Target:
    """One folder to fill.

    Attributes:
        plan: what to write.
        folder: existing folder; files get their final names in it.
        journal: knows finished files, which are not made again, and hears of new ones.
        files: names of the files that this process makes; None: all.
    """

    plan: Plan
    folder: Path
    journal: Journal | None = None
    files: frozenset[str] | None = None


def execute(
    plan: Plan,
    reader: Reader,
    folder: Path,
    *,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    progress: Progress | None = None,
    journal: Journal | None = None,
    check: Callable[[], None] | None = None,
) -> list[Path]:
    """Write all weight files of a plan; see `Target` and `execute_together`.

    Returns:
        the files, each flushed to the disk.
    """
    target = Target(plan, folder, journal)
    execute_together([target], reader, memory_limit=memory_limit, progress=progress, check=check)
    return [folder / shard.file for shard in plan.shards]


def execute_together(
    targets: Sequence[Target],
    reader: Reader,
    *,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    progress: Progress | None = None,
    check: Callable[[], None] | None = None,
    processes: int = 1,
    read_again: bool = True,
) -> None:
    """Write the weight files of several plans for one model in one pass over its source.

    Args:
        targets: the outputs; their plans list the same parameters in the same order.
        reader: the source of stored tensors.
        memory_limit: bytes that resident memory may grow by, measured.
        progress: called with the bytes written since its last call.
        check: called before a file counts as finished; what it raises ends the run.
        processes: how many share the cores of this host.
        read_again: this run reads the files once more, so the page cache keeps them if they fit.

    Raises:
        NumericError: NaN, Inf or overflow; names the tensor.
        DestinationError: the disk is full or cannot be written.
        OptionError: the memory limit is too small for this model; names the tensor.
    """
    if memory_limit < _MIN_MEMORY_LIMIT:
        raise OptionError(
            f"--memory-limit {memory_limit:,} bytes is too small; at least "
            f"{_MIN_MEMORY_LIMIT:,} are needed"
        )
    threads = max(1, min(_MAX_WORKERS, _cores() // processes))
    size = sum(s.nbytes for t in targets for s in t.plan.shards)
    uncached = not read_again or not page_cache_holds(size)
    with ThreadPoolExecutor(1) as syncer, ThreadPoolExecutor(threads) as pool:
        run = _Run(
            [_Output(t, syncer, uncached) for t in targets],
            reader, pool, threads, memory_limit, progress or (lambda _: None),
            check or (lambda: None),
        )  # fmt: skip
        try:
            with _mlx_cache_limited_to(4 * run.block):
                run.run()
        finally:
            # Blocks in work end within milliseconds; only then may their files be closed.
            pool.shutdown(cancel_futures=True)
            syncer.shutdown(cancel_futures=True)
            for output in run.outputs:
                output.abandon()


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _mlx_cache_limited_to(nbytes: int) -> Iterator[None]:
    """Freed buffers that MLX keeps for reuse count as memory of the process."""
    import mlx.core as mx

    before = mx.set_cache_limit(nbytes)
    try:
        yield
    finally:
        mx.set_cache_limit(before)


class _Output:
    """A target with the file that is in work."""

    def __init__(self, target: Target, syncer: ThreadPoolExecutor, uncached: bool) -> None:
        self.target = target
        self._syncer = syncer
        self._uncached = uncached
        self._file: ShardFile | None = None
        self.todo = [s for s in target.plan.shards if self._is_wanted(s)]
        self._shard_of = {name: shard for shard in self.todo for name in shard.offsets}

    def _is_wanted(self, shard: ShardPlan) -> bool:
        target = self.target
        if target.files is not None and shard.file not in target.files:
            return False
        return target.journal is None or not target.journal.knows(target.folder / shard.file)

    def work_on(self, index: int) -> list[tuple[ShardPlan, list[Part]]]:
        """The parts of one parameter that are to be written, by file."""
        output = self.target.plan.outputs[index]
        shards = {
            s.file: s for spec in output.specs if (s := self._shard_of.get(spec.name)) is not None
        }
        return [(shard, parts_of(output, shard)) for shard in shards.values()]

    def is_open(self, shard: ShardPlan) -> bool:
        return self._file is not None and self._file.shard is shard

    def open(self, shard: ShardPlan) -> ShardFile:
        """The file of a shard; the one before must be finished."""
        if self._file is None:
            path = self.target.folder / shard.file
            self._file = ShardFile(path, shard, self._syncer, self._uncached)
        return self._file

    def finish(self) -> None:
        """Put the file in work to disk and record it."""
        if self._file is not None:
            path, digest = self._file.path, self._file.finish()
            self._file = None
            if self.target.journal is not None:
                self.target.journal.finish(path, digest)

    def abandon(self) -> None:
        if self._file is not None:
            self._file.close()


class _OnceReader:
    """Reads every stretch once for the parts of one block, which share it unchanged."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._rows: dict[tuple[str, int, int | None], Array] = {}
        self._flat: dict[tuple[str, int, int], Array] = {}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        key = (name, start, stop)
        if key not in self._rows:
            self._rows[key] = self._reader.read(name, start, stop)
        return self._rows[key]

    def read_flat(self, name: str, start: int, stop: int) -> Array:
        key = (name, start, stop)
        if key not in self._flat:
            self._flat[key] = self._reader.read_flat(name, start, stop)
        return self._flat[key]


Written = list[tuple[ShardFile, list[tuple[int, Array]]]]


class _Run:
    """Blocks handed out and taken back, within bounds."""

    def __init__(
        self,
        outputs: list[_Output],
        reader: Reader,
        pool: ThreadPoolExecutor,
        workers: int,
        memory_limit: int,
        progress: Progress,
        check: Callable[[], None],
    ) -> None:
        self.outputs = outputs
        self.reader = reader
        self.pool = pool
        self.memory_limit = memory_limit
        self.progress = progress
        self.check = check
        self.most = workers + 2
        self.budget = memory_limit * 3 // 4
        copies = _COPIES + 2 * (len(outputs) - 1)
        self.copies = copies
        self.block = min(_MAX_BLOCK, max(_MIN_BLOCK, self.budget // (copies * self.most)))
        self.meter = Meter()
        self.pending: deque[tuple[Future[Written], int]] = deque()
        self.cost = 0

    def run(self) -> None:
        names = [o.name for o in self.outputs[0].target.plan.outputs]
        for output in self.outputs:
            assert [o.name for o in output.target.plan.outputs] == names
        self._require_memory()
        for index in range(len(names)):
            # A parameter whose parts lie in two files is computed for one after the other.
            for wave in zip_longest(*(output.work_on(index) for output in self.outputs)):
                self._write(wave)
        for output in self.outputs:
            self._finish(output)
            for shard in output.todo:
                if not shard.offsets:  # a plan without tensors
                    output.open(shard)
                    self._finish(output)

    def _write(self, wave: tuple[tuple[ShardPlan, list[Part]] | None, ...]) -> None:
        groups: dict[tuple[int, ...], list[tuple[ShardFile, Part]]] = {}
        for output, entry in zip(self.outputs, wave, strict=True):
            if entry is None:
                continue
            shard, parts = entry
            if not output.is_open(shard):
                self._finish(output)
            file = output.open(shard)
            for part in parts:
                groups.setdefault(part.expr.shape, []).append((file, part))
        for shape, group in groups.items():
            row_bytes = max(part.row_bytes for _, part in group)
            whole = max(whole_bytes(part.expr) for _, part in group)
            for before, region in row_regions(shape, row_bytes, self.block):
                cost = self.copies * max(self.block, row_bytes) + _WHOLE_COPIES * whole
                self._hand_out(group, before, region, cost)

    def _hand_out(
        self, group: list[tuple[ShardFile, Part]], before: int, region: Region, cost: int
    ) -> None:
        while self.pending and (len(self.pending) >= self.most or self.cost + cost > self.budget):
            self._take_back()
        self.cost += cost
        self.pending.append((self.pool.submit(self._make, group, before, region), cost))

    def _make(self, group: list[tuple[ShardFile, Part]], before: int, region: Region) -> Written:
        reader = self.reader if len(group) == 1 else _OnceReader(self.reader)
        written: Written = []
        for file, part in group:
            pieces = part.pieces(before, region, reader)
            file.write(pieces)
            written.append((file, pieces))
        return written

    def _take_back(self) -> None:
        future, cost = self.pending.popleft()
        written = future.result()
        self.cost -= cost
        self.progress(sum(file.follow(pieces) for file, pieces in written))
        self._watch()

    def _watch(self) -> None:
        """Fewer and smaller blocks when memory has grown near the limit."""
        if self.meter.read() <= self.memory_limit * 4 // 5:
            return
        self.block = min(self.block, max(_MIN_BLOCK, self.block // 2))
        self.budget = max(_COPIES * _MIN_BLOCK, self.budget // 2)
        self.most = max(1, self.most - 1)
        if not self.pending and self.meter.read() > self.memory_limit:
            raise OptionError(
                f"--memory-limit {self.memory_limit:,} bytes cannot be kept: "
                f"{self.meter.peak:,} were in use with a single block in work; run the command "
                "again with a larger limit, it goes on from here"
            )

    def _finish(self, output: _Output) -> None:
        while self.pending:
            self._take_back()
        self.check()
        output.finish()

    def _require_memory(self) -> None:
        """Refuse a limit that a tensor cannot be made in, before anything is made."""
        for output in self.outputs:
            for index, planned in enumerate(output.target.plan.outputs):
                for _, parts in output.work_on(index):
                    for part in parts:
                        need = _least(part.expr, part.row_bytes, self.copies)
                        if need > self.memory_limit:
                            raise OptionError(
                                f"--memory-limit {self.memory_limit:,} bytes is too small for "
                                f"{planned.name}, which takes {need:,}: {_why(part.expr)}; use "
                                f"--memory-limit {need} or more"
                            )


def _least(expr: Expr, row_bytes: int, copies: int) -> int:
    return copies * max(row_bytes, _MIN_BLOCK) + _WHOLE_COPIES * whole_bytes(expr)


def _why(expr: Expr) -> str:
    whole = whole_bytes(expr)
    return "a function of its port needs it whole" if whole else "its rows are as long as that"
