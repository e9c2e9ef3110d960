"""Files that are read only if they are files, and replaced only by a whole one."""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

DISK_ERRORS = {errno.ENOSPC, errno.EIO, errno.EFBIG, getattr(errno, "EDQUOT", None)}
"""What writing fails with, and does not tell of which file."""

_unfinished: set[Path] = set()


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read its bytes, if it is one: a pipe or a device may never end.

    Raises:
        OSError: It cannot be opened, or is a folder, a pipe, a socket or a device, be
            it by a link.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return open(path, "rb")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file whole or not at all, and durably.

    The bytes go to a temporary file in the same folder, which takes the name `path`
    when all of them are on disk. Where writing fails, `path` stays as it was.

    Yields:
        Where to write.

    Raises:
        OSError: As writing does.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    _unfinished.add(temporary)
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
    finally:
        _unfinished.discard(temporary)
    sync_folder(path.parent)


def remove_unfinished() -> None:
    """Remove what this process has begun to write, for it is about to end at once."""
    for temporary in [*_unfinished]:
        with suppress(OSError):
            temporary.unlink()


def leftovers(folder: Path, name: str = "*") -> Iterator[Path]:
    """Find what processes that were killed left of files of this name.

    They may also be those of a process that is at work: only its owner, or the holder
    of a lock, removes them.
    """
    yield from folder.glob(f".{name}.{'[0-9a-f]' * 16}.part")


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, durably; one that is there will do.

    Raises:
        OSError: It cannot be made.
    """
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make new names in a folder durable (Windows has no way to ask for that)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
