"""Locks that keep other processes out, and die with their holders."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def locked(path: Path, busy: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock that is the file `path`, which stays when the lock is released.

    Args:
        path: The file; one that is a link is not followed.
        busy: Called with the holder where another process holds the lock. When it
            returns, the lock is waited for.

    Raises:
        OSError: The file cannot be written, or is a link.
    """
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        holder = ""
        with suppress(OSError):
            holder = path.read_text(errors="replace")[:1000]
        busy(holder or "another process")
        lock.acquire()
    try:
        now = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
        me = f"process {os.getpid()} on {socket.gethostname()} since {now}"
        with suppress(OSError):  # on a full disk it is a lock without its holder's name
            path.write_text(me)
        yield
    finally:
        lock.release()
