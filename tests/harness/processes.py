"""Several processes at once, as torchrun would start them, but in a moment."""

import multiprocessing
import os
import signal
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

FORK = multiprocessing.get_context("fork")
LIMIT = 100
"""Seconds after which a group that does not answer is given up."""

LIMIT_OF_OTHERS = 10
"""Seconds after the answer of one process that the next may take for its own."""


def in_group(world_size: int, work: Callable[[int], Any]) -> list[Any]:
    """Return what `work(rank)` returns in each of W processes, by rank.

    Of one that raises it is the error, and of one that was killed or stopped None.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes, ends = [], []
    for rank in range(world_size):
        ours, theirs = FORK.Pipe(duplex=False)
        numbers = {"RANK": rank, "WORLD_SIZE": world_size}
        local = {"LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world_size}
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {k: str(v) for k, v in (numbers | local | place).items()}
        args = (theirs, environment, work, rank)
        process = FORK.Process(target=_run, args=args)
        process.start()
        theirs.close()
        processes.append(process)
        ends.append(ours)
    limits = [LIMIT] + [LIMIT_OF_OTHERS] * (world_size - 1)
    results = [*map(_receive, ends, limits)]
    for process in processes:
        process.join(1)
        if process.is_alive():
            process.kill()
            process.join()
    return results


def _run(
    end: Connection, environment: dict[str, str], work: Callable[[int], Any], rank: int
) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    try:
        end.send(work(rank))
    except BaseException as error:
        traceback.print_exc()
        end.send(error)
    os._exit(0)  # what pytest would do at its end is not this process's to do


def _receive(end: Connection, limit: float) -> Any:
    try:
        return end.recv() if end.poll(limit) else None
    except EOFError:
        return None
