"""Run directories of their own, and files replaced only by a complete successor."""

import errno
import itertools
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from minitrain.errors import RunDirectoryError, StorageError

try:
    import fcntl
except ImportError:  # Windows: there runs are not kept apart
    fcntl = None

DISK_ERRORS = {errno.ENOSPC, errno.EIO, errno.EFBIG, getattr(errno, "EDQUOT", None)}
"""What writing fails with, and does not tell of which file."""


def check_unused(folder: Path | None) -> None:
    """Make sure that a run would start in a folder of its own, new or empty.

    Raises StorageError where it is a file, RunDirectoryError where it is not empty.
    """
    if folder is None or not os.path.exists(folder):  # False for impossible names
        return
    if not folder.is_dir():
        raise StorageError(f"{folder} is a file: a run needs a folder")
    if any(folder.iterdir()):
        raise RunDirectoryError(
            f"{folder} is not empty: a run starts in a folder of its own. Nothing was "
            "changed; give another name by --run-dir, or none for a fresh one"
        )


def create_folder(folder: Path | None, name: str) -> Path:
    """The folder, created, or else a fresh one `runs/<name>-<date>-<time>`.

    Raises StorageError where it cannot be created.
    """
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        stem = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
        for number in itertools.count(1):
            folder = Path("runs") / (stem if number == 1 else f"{stem}-{number}")
            try:
                folder.mkdir(parents=True)
                return folder
            except FileExistsError:
                if not folder.is_dir():  # `runs` itself is a file
                    raise
    except OSError as error:
        raise StorageError(
            f"cannot create the run directory: {error}. Nothing was done; give another "
            "one by --run-dir"
        ) from None
    raise AssertionError("unreachable: the numbers do not end")


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


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file whole or not at all, and durably: yields where to write.

    The bytes go to a temporary file in the same folder, which takes the name `path`
    when all of them are on disk. Where writing fails, `path` stays as it was.

    Raises OSError as writing does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            error.filename = error.filename or str(path)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the new name itself durable (Windows has no way to ask for that)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
