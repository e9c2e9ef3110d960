"""Several processes at once, as torchrun would start them, but in a moment."""

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

FORK = multiprocessing.get_context("fork")
LIMIT = 100
"""Seconds after which a group that does not answer is given up."""

LIMIT_OF_OTHERS = 10
"""Seconds that the others may take to end where one has failed."""


def in_group(world_size: int, work: Callable[[int], Any]) -> list[Any]:
    """Return what `work(rank)` returns in each of W processes, by rank.

    Of one that raises it is the error, and of one that was killed or stopped None.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes, ends = [], []
    for rank in range(world_size):
        ours, theirs = FORK.Pipe(duplex=False)
        numbers = {"RANK": rank, "WORLD_SIZE": world_size}
        local = {"LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world_size}
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
        place |= {"TORCHELASTIC_USE_AGENT_STORE": True}  # this process has it
        environment = {k: str(v) for k, v in (numbers | local | place).items()}
        args = (theirs, environment, work, rank)
        process = FORK.Process(target=_run, args=args)
        process.start()
        theirs.close()
        processes.append(process)
        ends.append(ours)
    try:
        _tend(processes, ends)
        return [*map(_receive, ends)]
    finally:
        for process in processes:
            process.kill()
            process.join()


def in_process_group(world_size: int, work: Callable[[int], Any]) -> list[Any]:
    """Return what `in_group` does, where the processes are connected by gloo.

    Raises:
        Exception: The first that one of them raised.
    """

    def connected(rank: int) -> Any:
        torch.distributed.init_process_group("gloo")
        try:
            return work(rank)
        finally:
            torch.distributed.destroy_process_group()

    results = in_group(world_size, connected)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def _tend(processes: list[Any], ends: list[Connection]) -> None:
    """Wait for all, as torchrun does: where one fails, the others are asked to end."""
    deadline, is_ending = time.monotonic() + LIMIT, False
    while time.monotonic() < deadline and not all(end.poll() for end in ends):
        if not is_ending and any(process.exitcode for process in processes):
            is_ending, deadline = True, time.monotonic() + LIMIT_OF_OTHERS
            for process in processes:
                process.terminate()
        time.sleep(0.02)


def _run(
    end: Connection, environment: dict[str, str], work: Callable[[int], Any], rank: int
) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    try:
        end.send(work(rank))
        code = 0
    except BaseException as error:
        traceback.print_exc()
        end.send(error)
        code = 1
    os._exit(code)  # what pytest would do at its end is not this process's to do


def _receive(end: Connection) -> Any:
    try:
        return end.recv() if end.poll() else None
    except EOFError:
        return None
