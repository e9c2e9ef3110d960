"""A lock on a folder, which dies with its holder."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from minitrain.system.errors import RunDirectoryError, StorageError

try:
    import fcntl
except ImportError:  # Windows: there runs are not kept apart
    fcntl = None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run directory; the lock dies with its holder.

    Raises RunDirectoryError where another process holds it, and StorageError where the
    folder cannot be written to, or the lock is a link: nothing is written through one.
    """
    path = folder / "lock"
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    try:
        file = os.open(path, flags, 0o666)
    except OSError as error:
        raise StorageError(
            f"cannot write to the run directory: {error}. Nothing was changed; give "
            "another one by --run-dir"
        ) from None
    try:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(file, 1000).decode(errors="replace")
                raise RunDirectoryError(
                    f"{folder} is in use by {holder}; nothing was changed"
                ) from None
        now = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
        holder = f"process {os.getpid()} on {socket.gethostname()} since {now}"
        with suppress(OSError):  # on a full disk it is a lock without its holder's name
            os.ftruncate(file, 0)
            os.write(file, holder.encode())
        yield
    finally:
        os.close(file)
