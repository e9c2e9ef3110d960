"""Who of a group is alive: every process beats, and says a last word when it leaves.

A process that dies closes its connections, and whoever waits for it learns so at once,
but not who it was. One that was stopped closes nothing. Beats tell both: a thread of
each process counts them up in the store that torchrun keeps, whatever else the process
is busy with.
"""

import secrets
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from torch.distributed import (
    PrefixStore,  # pyright: ignore[reportPrivateImportUsage]
    Store,  # pyright: ignore[reportPrivateImportUsage]
)

from minitrain.system.errors import GroupError

PERIOD = 0.25
"""Seconds between two beats."""

LATENESS = 45.0
"""Seconds after which a process that has not come is given up."""

TOKEN = "minitrain group"
"""Where the present group says what its keys begin with."""


class Lost(NamedTuple):
    """A process that has left its group too early."""

    rank: int
    word: str
    """What it said when it left; empty where it could not say anything."""


class Pulse:
    """The beats of a group.

    Args:
        store: Where they are counted; it may hold those of groups that have ended.
        rank: The number of this process.
        world_size: How many there are.

    Raises:
        GroupError: One of them has not come in time.
    """

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        self.world_size, self._rank = world_size, rank
        self._others = [other for other in range(world_size) if other != rank]
        deadline = time.monotonic() + LATENESS
        token = secrets.token_hex(8) if rank == 0 else _living(store, deadline)
        self.store = PrefixStore(token, store)
        """A part of it for this group alone."""
        self._seen: dict[int, tuple[bytes, float]] = {}
        self._over = threading.Event()
        self.store.set(f"beat {rank}", "0")
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        if rank == 0:
            store.set(TOKEN, token)
        for other in self._others:
            while not self.store.check([f"beat {other}"]):
                self._check_those_here()
                _wait(f"rank {other}", deadline)

    def _check_those_here(self) -> None:
        """Make sure that who has come is alive: others may be waiting for that one.

        Raises:
            GroupError: One has stopped.
        """
        here = [r for r in self._others if self.store.check([f"beat {r}"])]
        if silent := self.silent(LATENESS / 2, here):
            raise GroupError(
                f"rank {silent[0]} of {self.world_size} hangs at the start"
            )

    def _beat(self) -> None:
        store, number = self.store.clone(), 0
        while not self._over.wait(PERIOD):
            number += 1
            try:
                store.set(f"beat {self._rank}", str(number))
            except RuntimeError:  # the store is gone, and with it the group
                return

    def stop(self, word: str) -> None:
        """Beat no more, after a last word."""
        self._over.set()
        self._thread.join()
        try:
            self.store.set(f"word {self._rank}", word)
        except RuntimeError:  # nobody is there to hear it
            return

    def silent(self, seconds: float, ranks: Sequence[int] | None = None) -> list[int]:
        """Return the ranks whose beat has not changed for this many seconds."""
        now = time.monotonic()
        for rank in self._others if ranks is None else ranks:
            beat = self.store.get(f"beat {rank}")
            if rank not in self._seen or self._seen[rank][0] != beat:
                self._seen[rank] = beat, now
        return [rank for rank, (_, at) in self._seen.items() if now - at > seconds]

    def lost(self) -> Lost | None:
        """Return which other process has left, and its last word; None if none has.

        A process that left because of another one does not count.
        """
        for rank in self._others:
            if self.store.check([key := f"word {rank}"]):
                word = self.store.get(key).decode()
                if word:
                    return Lost(rank, word)
        gone = [rank for rank in self.silent(6 * PERIOD) if not self._has_left(rank)]
        return Lost(gone[0], "") if gone else None

    def _has_left(self, rank: int) -> bool:
        return self.store.check([f"word {rank}"])


def _living(store: Store, deadline: float) -> str:
    """Return the token of the group whose process 0 is alive.

    After a restart the store still has that of the group before, for a while.
    """
    while True:
        while not store.check([TOKEN]):
            _wait("rank 0", deadline)
        token = store.get(TOKEN).decode()
        key = f"{token}/beat 0"
        before = store.get(key)
        _wait("rank 0", deadline)
        if store.get(key) != before:
            return token


def _wait(who: str, deadline: float) -> None:
    """Wait a little longer than a beat.

    Raises:
        GroupError: The time is over.
    """
    if time.monotonic() > deadline:
        raise GroupError(f"{who} has not come within {LATENESS:.0f} seconds")
    time.sleep(1.5 * PERIOD)
