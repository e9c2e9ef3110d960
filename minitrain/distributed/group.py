"""The processes of a training, connected by torch.distributed."""

import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import rendezvous

from minitrain._torch import set_collectives_timeout
from minitrain.distributed.launch import Launch
from minitrain.distributed.messages import pack, unpack
from minitrain.distributed.pulse import Pulse
from minitrain.shards import Alone
from minitrain.system.errors import GroupError, SettingsError

T = TypeVar("T")

SLICE = timedelta(seconds=1)
"""How long to wait before looking whether the others are alive."""

WAKEFUL = 0.005
"""Seconds in which a process that waits stays awake, if it has a core of its own."""

PATIENCE = 10.0
"""Seconds without a beat after which a process counts as hung."""

PATIENCE_AT_START = 45.0
"""The same before the first step, when modules and data are loaded."""

LIMIT = timedelta(hours=1)
"""The longest wait for processes that are alive."""


class Group:
    """One process among those of a training, which are called its ranks.

    Args:
        launch: Which one it is.
        pulse: Tells who is alive.
        store: Is there for all groups that torchrun starts, one after the other.
        signal: Returns the number of the signal that asks this process to end, or 0.
        on_device: Whether tensors on an accelerator are sent from there, by NCCL.
    """

    def __init__(
        self,
        launch: Launch,
        pulse: Pulse,
        store: Store,
        signal: Callable[[], int] = lambda: 0,
        on_device: bool = False,
    ) -> None:
        self.rank, self.world_size = launch.rank, launch.world_size
        self.local_rank = launch.local_rank
        self.seconds = 0.0
        """What was spent on telling and waiting for the messages of steps."""
        self.received = 0
        """The signal that asked any rank to end; all learn of it in the same step."""
        self._launch, self._pulse, self._store = launch, pulse, store
        self._signal, self._on_device = signal, on_device
        self._patience = PATIENCE_AT_START
        self._has_core = launch.local_world_size <= (os.cpu_count() or 1)
        self.num_restarts = max(self.gather_objects(launch.num_restarts))
        """How often torchrun has started the processes of any machine again."""

    def gather(self, tensors: Sequence[Tensor]) -> list[list[Tensor]]:
        """Return the tensors of every rank; all have the same shapes, on one device.

        Raises:
            GroupError: A rank has died or hangs.
        """
        start = time.perf_counter()
        device = tensors[0].device
        message = pack([*tensors, torch.tensor(self._signal(), device=device)])
        form = [*tensors, torch.zeros((), dtype=torch.int64)]
        of_all = [unpack(m.to(device), form) for m in self._gather(message)]
        self.received = max(int(each.pop()) for each in of_all)
        self._patience = PATIENCE
        self.seconds += time.perf_counter() - start
        return of_all

    def gather_objects(self, own: T) -> list[T]:
        """Return the object of every rank; it is pickled.

        Raises:
            GroupError: A rank has died or hangs.
        """
        data = _pickled(own)
        sizes = [int(size) for size in self._gather(torch.tensor([len(data)]))]
        padded = torch.cat([data, data.new_empty(max(sizes) - len(data))])
        pairs = zip(self._gather(padded), sizes, strict=True)
        return [_unpickled(of_one[:size]) for of_one, size in pairs]

    def _gather(self, message: Tensor) -> list[Tensor]:
        if not self._on_device:
            message = message.cpu()
        of_all = [torch.empty_like(message) for _ in range(self.world_size)]
        of_all[self.rank] = message
        self._broadcast(of_all)
        return of_all

    def _broadcast(self, messages: Sequence[Tensor]) -> None:
        """Have the messages of the first ranks, one of each, on all ranks, in place."""
        try:
            # As many broadcasts at once take gloo two thirds of an all_gather's time.
            works: list[Any] = [
                dist.broadcast(of_one, rank, async_op=True)
                for rank, of_one in enumerate(messages)
            ]
            for work in works:
                if messages[0].is_cpu:
                    self._wait(work)
                else:
                    work.wait()  # on the accelerator; this process goes on
        except GroupError:
            raise
        except RuntimeError as error:  # a connection was closed
            raise find_lost(self._pulse, error) from None

    def _wait(self, work: Any) -> None:
        """Wait, and look every second whether the others are alive."""
        # A core that fell asleep wakes late: an exchange took half as long again.
        end = time.perf_counter() + WAKEFUL * self._has_core
        while time.perf_counter() < end and not work.is_completed():
            os.sched_yield()
        while True:
            try:
                return work.wait(SLICE)
            except RuntimeError:
                if work.is_completed():  # by an error, or in this very moment
                    return work.wait()
            if silent := self._pulse.silent(self._patience):
                raise GroupError(
                    f"rank {silent[0]} of {self.world_size} hangs: it gives no sign of "
                    f"life for {self._patience:.0f} seconds"
                )

    def share(self, own: T) -> T:
        """Return the object of rank 0; that of others is not looked at."""
        data = _pickled(own if self.rank == 0 else None)
        self._broadcast([size := torch.tensor([len(data)])])
        if self.rank:
            data = data.new_empty(int(size))
        self._broadcast([data])
        return own if self.rank == 0 else _unpickled(data)

    def keep(self, name: str, value: str) -> None:
        """Remember a value, for groups that are started after this one, too."""
        if self.rank == 0:
            self._store.set(name, value)

    def kept(self, name: str) -> str:
        """Return what was kept by that name; empty if nothing was."""
        return self._store.get(name).decode() if self._store.check([name]) else ""

    @contextmanager
    def one_per_machine_first(self) -> Iterator[None]:
        """Have the block done by one rank of each machine, and then by the others."""
        is_first = self._launch.local_rank == 0
        if not is_first:
            self.gather_objects(None)
        yield
        if is_first:
            self.gather_objects(None)

    def check_equal(self, what: str, values: Mapping[str, Any]) -> None:
        """Make sure that the values are the same on all ranks.

        Raises:
            SettingsError: They are not; the first that differ are named.
        """
        of_all = self.gather_objects(dict(values))
        for rank, theirs in enumerate(of_all):
            for key, value in of_all[0].items():
                if theirs.get(key) != value:
                    raise SettingsError(
                        f"{what} differ between ranks: {key} is {value} on rank 0 and "
                        f"{theirs.get(key)} on rank {rank}. All must run the same "
                        "experiment, with the same settings, data and versions"
                    )


def _pickled(value: object) -> Tensor:
    return torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)


def _unpickled(data: Tensor) -> Any:
    return pickle.loads(data.numpy().tobytes())


def find_lost(pulse: Pulse, error: RuntimeError) -> GroupError:
    """Return the error that names who has left, where a connection was closed."""
    for _ in range(40):
        if lost := pulse.lost():
            what = f"ended by itself: {lost.word}" if lost.word else "has died"
            return GroupError(f"rank {lost.rank} of {pulse.world_size} {what}")
        time.sleep(0.1)
    return GroupError(f"the connection to the other ranks is lost: {error}")


class Single(Alone):
    """A process without others, in the place of a group."""

    seconds, local_rank = 0.0, 0

    def __init__(
        self,
        signal: Callable[[], int] = lambda: 0,
        num_restarts: int = 0,
        store: Store | None = None,
    ) -> None:
        self._signal, self.num_restarts = signal, num_restarts
        self._store = store

    @property
    def received(self) -> int:
        """The signal that asked the process to end, or 0."""
        return self._signal()

    def share(self, own: T) -> T:
        return own

    def keep(self, name: str, value: str) -> None:
        if self._store is not None:
            self._store.set(name, value)

    def kept(self, name: str) -> str:
        is_kept = self._store is not None and self._store.check([name])
        return self._store.get(name).decode() if self._store and is_kept else ""

    def one_per_machine_first(self) -> AbstractContextManager[None]:
        return nullcontext()


@contextmanager
def joined(
    launch: Launch, device: torch.device, signal: Callable[[], int]
) -> Iterator[Group | Single]:
    """Join the group of the processes that were started together, and leave it.

    Args:
        launch: Which process this is.
        device: Where it computes.
        signal: Returns the number of the signal that asks it to end, or 0.
    """
    if launch.world_size == 1 and not dist.is_torchelastic_launched():
        yield Single(signal, launch.num_restarts)
        return
    store, _, _ = next(iter(rendezvous("env://")))
    if launch.world_size == 1:
        yield Single(signal, launch.num_restarts, store)
        return
    pulse, word = Pulse(store, launch.rank, launch.world_size), ""
    # Two processes on one GPU cannot be connected by NCCL.
    on_device = device.type == "cuda" and has_device_each(launch)
    try:
        try:
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if on_device else "gloo",
                store=pulse.store,
                rank=launch.rank,
                world_size=launch.world_size,
                timeout=timedelta(seconds=PATIENCE_AT_START),
            )
            set_collectives_timeout(LIMIT)
        except RuntimeError as error:
            raise find_lost(pulse, error) from None
        yield Group(launch, pulse, store, signal, on_device)
        dist.destroy_process_group()
    except GroupError:
        raise  # it left because of another one
    except BaseException as error:
        word = f"{type(error).__name__}: {error}"
        raise
    finally:
        pulse.stop(word)


def has_device_each(launch: Launch) -> bool:
    """Return whether every process of this machine has an accelerator of its own."""
    return torch.accelerator.device_count() >= launch.local_world_size
