"""Run directories: a folder of its own for each run."""

import itertools
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from minitrain.system.errors import RunDirectoryError, StorageError
from minitrain.system.files import make_folder, sync_folder
from minitrain.system.lock import locked

LOCK = "minitrain.lock"
"""The first file in a run directory; by its name the folder is known to be one."""


def check_unused(folder: Path | None) -> None:
    """Make sure that a run would start in a folder of its own, new or empty.

    Raises:
        StorageError: It is a file.
        RunDirectoryError: It is not empty.
    """
    if any(path.name != LOCK for path in entries(folder)):
        raise RunDirectoryError(
            f"{folder} is not empty: a run starts in a folder of its own. Nothing was "
            "changed; give another name by --run-dir, or none for a fresh one, or "
            "continue the run that is there by --resume"
        )


def entries(folder: Path | None) -> list[Path]:
    """Return what is in a folder, if there is one.

    Raises:
        StorageError: It is a file.
    """
    if folder is None or not os.path.exists(folder):  # False for impossible names
        return []
    if not folder.is_dir():
        raise StorageError(f"{folder} is a file: a run needs a folder")
    return list(folder.iterdir())


def create_folder(folder: Path | None, name: str, root: str = "runs") -> Path:
    """Create the folder, or else a fresh one `<root>/<name>-<date>-<time>`; return it.

    Raises:
        StorageError: It cannot be created.
    """
    try:
        if folder is not None:
            make_folder(folder)
            return folder
        runs, stem = Path(root), f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
        make_folder(runs)
        for number in itertools.count(1):
            folder = runs / (stem if number == 1 else f"{stem}-{number}")
            try:
                folder.mkdir()
                sync_folder(runs)
                return folder
            except FileExistsError:
                continue
    except OSError as error:
        raise StorageError(
            f"cannot create the run directory: {error}. Nothing was done; give another "
            "one by --run-dir"
        ) from None
    raise AssertionError("unreachable: the numbers do not end")


@contextmanager
def occupying(folder: Path, *, is_new: bool = False) -> Iterator[None]:
    """Keep other processes out of a run directory.

    Args:
        folder: The folder.
        is_new: Whether it was created for this: then it is removed where it has
            received nothing but its lock.

    Raises:
        RunDirectoryError: Another process is in it.
        StorageError: The folder cannot be written to, or the lock is a link: nothing is
            written through one.
    """

    def refuse(holder: str) -> None:
        raise RunDirectoryError(f"{folder} is in use by {holder}; nothing was changed")

    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / LOCK, refuse))
        except OSError as error:
            raise StorageError(
                f"cannot write to the run directory {folder}: {error.strerror}. "
                "Nothing was changed; give another one by --run-dir"
            ) from None
        try:
            yield
        finally:
            if is_new and [path.name for path in entries(folder)] == [LOCK]:
                with suppress(OSError):
                    (folder / LOCK).unlink()
                    folder.rmdir()
