"""Several processes, on one host or on many, that make one output together.

`torchrun` or a launcher like it starts them and says in the environment who is who; torch's
key-value store, which the launcher needs anyway, carries a few words between them, and everything
else goes through the shared folder.  The first process plans, takes the lock, deals out the weight
files by their bytes, and does what comes after; the others make their files and record them in
journals of their own.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from torch2mlx.errors import DestinationError, OptionError, Torch2MLXError
from torch2mlx.planning.shards import ShardPlan

__all__ = ["ALONE", "Store", "Team", "deal_out", "find_team"]

_POLL = 0.1  # seconds
_PATIENCE = 10.0  # seconds that the leading process waits for the others to leave
# How long a process looks for the store.  A launcher that keeps it has it before it starts any
# process; without one, hosts may start minutes apart.
_STORE_OF_LAUNCHER = timedelta(minutes=1)
_STORE_OF_PROCESS = timedelta(minutes=30)
# A process that is killed says nothing, and neither does its launcher to those on other hosts.
_BEAT = 5.0  # seconds between signs of life
_SILENCE = 60.0  # seconds without one
_ARRIVAL = 180.0  # seconds until the first one, which comes after imports
_FAILED = "failed"


class Store(Protocol):
    """What is used of `torch.distributed.Store`."""

    def set(self, key: str, value: str) -> None:
        """Store a value under a key."""

    def get(self, key: str) -> bytes:
        """The value of a key that is there."""

    def check(self, keys: list[str]) -> bool:
        """Whether all keys are there."""


@dataclass(frozen=True)
class Team:
    """This process among those of a launch.

    Attributes:
        rank: its number; 0 leads.
        size: how many there are.
        local_size: how many of them are on this host.
        store: what they talk through; None for a process alone.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1
    store: Store | None = None

    @property
    def leads(self) -> bool:
        """Whether this process does what only one may do."""
        return self.rank == 0

    def check(self) -> None:
        """Raise DestinationError if another process has failed, with its reason."""
        if self._knows(_FAILED):
            raise DestinationError(self._ask(_FAILED).decode(errors="replace"))

    def tell(self, key: str, value: Any) -> None:
        """Tell the others something, as JSON."""
        if self.store is not None:
            with _reached():
                self.store.set(key, json.dumps(value))

    def hear(self, key: str) -> Any:
        """Wait until another process tells something.

        Raises:
            DestinationError: one has failed meanwhile, with its reason; or is gone.
        """
        others = _SignsOfLife(self)
        while not self._knows(key):
            self.check()
            others.check()
            time.sleep(_POLL)
        return json.loads(self._ask(key))

    def hear_all(self, key: str) -> None:
        """Wait until every other process has told `key/<rank>`."""
        for rank in range(self.size):
            if rank != self.rank:
                self.hear(f"{key}/{rank}")

    @contextmanager
    def stops_together(self) -> Iterator[None]:
        """Tell the others if the block fails, so that they stop too.

        The leading process, which may keep the store, leaves last.  A launcher ends those that
        are left with SIGTERM when one was killed, which here is a failure like others.
        """
        try:
            with self._ended_in_words(), self._beating():
                yield
        except BaseException as error:
            with suppress(Torch2MLXError):
                if not self._knows(_FAILED):
                    self._tell_failure(error)
            raise
        finally:
            with suppress(Torch2MLXError):
                if not self.leads:
                    self.tell(f"left/{self.rank}", True)
                else:
                    self._wait_for_the_others()

    @contextmanager
    def _ended_in_words(self) -> Iterator[None]:
        if self.size == 1 or threading.current_thread() is not threading.main_thread():
            yield
            return

        def end(*_: object) -> None:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self.check()  # another process may have said why
            raise DestinationError(
                f"process {self.rank} of {self.size} was ended by its launcher (SIGTERM), as when "
                "another process was killed; what is finished is kept: the same launch goes on "
                "from there"
            )

        before = signal.signal(signal.SIGTERM, end)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    @contextmanager
    def _beating(self) -> Iterator[None]:
        """Give signs of life."""
        if self.size == 1:
            yield
            return
        ended = threading.Event()

        def beat() -> None:
            number = 0
            with suppress(Torch2MLXError):  # whoever waits for the store will tell
                while not ended.wait(_BEAT if number else 0):
                    number += 1
                    self.tell(f"beat/{self.rank}", number)

        threading.Thread(target=beat, name="torch2mlx-beat", daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    def last_sign(self, rank: int) -> bytes:
        """The last sign of life of a process, empty before the first one."""
        key = f"beat/{rank}"
        return self._ask(key) if self._knows(key) else b""

    def has_left(self, rank: int) -> bool:
        """Whether a process has come to its end."""
        return self._knows(f"left/{rank}")

    def _tell_failure(self, error: BaseException) -> None:
        if self.store is not None:
            reason = str(error) if isinstance(error, Torch2MLXError) else repr(error)
            text = f"process {self.rank} of {self.size} stopped: {reason}"
            with _reached():
                self.store.set(_FAILED, text)

    def _wait_for_the_others(self) -> None:
        end = time.monotonic() + _PATIENCE
        left = [f"left/{rank}" for rank in range(1, self.size)]
        while left and not all(map(self._knows, left)) and time.monotonic() < end:
            time.sleep(_POLL)

    def _knows(self, key: str) -> bool:
        with _reached():
            return self.store is not None and self.store.check([key])

    def _ask(self, key: str) -> bytes:
        assert self.store is not None
        with _reached():
            return self.store.get(key)


class _SignsOfLife:
    """When each of the other processes was last heard of, by the clock of this one."""

    def __init__(self, team: Team) -> None:
        now = time.monotonic()
        self._team = team
        self._last = {rank: (b"", now) for rank in range(team.size) if rank != team.rank}
        self._next = now + _BEAT

    def check(self) -> None:
        """Raise DestinationError if one was silent for too long."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _BEAT
        for rank, (last, since) in self._last.items():
            sign = self._team.last_sign(rank)
            if sign != last:
                self._last[rank] = (sign, now)
            elif now - since > (_SILENCE if sign else _ARRIVAL) and not self._team.has_left(rank):
                raise DestinationError(
                    f"process {rank} of {self._team.size} has given no sign of life for "
                    f"{now - since:.0f} seconds: it was killed, or its host is gone; what is "
                    "finished is kept: the same launch goes on from there"
                )


@contextmanager
def _reached() -> Iterator[None]:
    """Torch raises RuntimeErrors where the process that keeps the store is gone."""
    try:
        yield
    except RuntimeError as error:
        raise DestinationError(
            "the leading process cannot be reached any more; what is finished is kept: the same "
            "launch goes on from there"
        ) from error


ALONE = Team()

_UNSET = "start all processes with torchrun, or unset these variables to run as one process"


def find_team(environment: Mapping[str, str] = os.environ) -> Team:
    """The team that a launcher's environment variables (RANK, WORLD_SIZE ...) describe.

    Raises:
        OptionError: the variables are incomplete, or no numbers.
        DestinationError: the store that they name does not answer.
    """
    try:
        size = int(environment.get("WORLD_SIZE") or 1)
        local_size = int(environment.get("LOCAL_WORLD_SIZE") or 1)
    except ValueError as error:
        raise OptionError(f"WORLD_SIZE, LOCAL_WORLD_SIZE: {error}; {_UNSET}") from None
    if size == 1 or "RANK" not in environment or "MASTER_ADDR" not in environment:
        return ALONE
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # lost connections are told in words
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    kept = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    timeout = _STORE_OF_LAUNCHER if kept else _STORE_OF_PROCESS
    try:
        with _reached():
            store, rank, size = next(rendezvous("env://", timeout=timeout))
    except ValueError as error:  # a variable is missing, or no number
        raise OptionError(f"RANK and WORLD_SIZE are set, but {error}; {_UNSET}") from error
    # A launcher that starts its processes again keeps its store.
    launch = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    return Team(
        rank=rank,
        size=size,
        local_size=local_size,
        store=PrefixStore(f"torch2mlx/{launch}", store),
    )


def deal_out(shards: Sequence[ShardPlan], size: int) -> list[int]:
    """The rank that makes each file: the largest first, each to whoever has the fewest bytes."""
    loads = [0] * size
    ranks = [0] * len(shards)
    for index in sorted(range(len(shards)), key=lambda i: -shards[i].nbytes):
        ranks[index] = loads.index(min(loads))
        loads[ranks[index]] += shards[index].nbytes
    return ranks
