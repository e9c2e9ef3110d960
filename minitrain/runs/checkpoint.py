"""Checkpoints: all that the future of a run depends on, durable and verified.

A checkpoint is one file, `step-<step>.<SHA-256 of its bytes>.pt`. It appears under that
name only when all of it is on disk, and it is read only when its bytes still have that
hash: torch.load itself notices one flipped bit in three hundred.
"""

import hashlib
import io
import re
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from minitrain import __version__
from minitrain.system.errors import CheckpointError
from minitrain.system.files import open_regular, replacing

FORMAT = 3
"""The form of the state in a file: raised where older states cannot be continued."""

_WRITERS = {1: "an early 0.1.0", 2: "0.2.0"}
"""The versions that write older formats, for states that do not tell by themselves."""


_NAME = re.compile(r"step-(\d{8,})\.([0-9a-f]{64})\.pt")


class DamagedError(CheckpointError):
    """The bytes of a checkpoint are not those that were saved."""


class UnreadableError(CheckpointError):
    """A checkpoint cannot be read now; it may be intact."""


class Checkpoint(NamedTuple):
    """A checkpoint that was read."""

    step: int
    path: Path
    state: dict[str, Any]


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write the state of a run; it is durable when this returns.

    Args:
        folder: Where the checkpoints of the run are.
        step: How many updates were made.
        state: A nested dict of tensors, numbers, strings, lists and None, so that
            `torch.load(path, weights_only=True)` reads it anywhere.

    Returns:
        The path of the checkpoint.

    Raises:
        OSError: It cannot be written; all other checkpoints stay as they are.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "step": step, **state}, buffer)
    data = buffer.getbuffer()
    path = folder / f"step-{step:08d}.{hashlib.sha256(data).hexdigest()}.pt"
    with replacing(path) as file:
        file.write(data)
    return path


def load(path: Path) -> Checkpoint:
    """Read a checkpoint, after its bytes were verified.

    Raises:
        DamagedError: Its bytes are not those that were saved.
        UnreadableError: It cannot be read, or is not a file.
        CheckpointError: It was not written by `save`, or by another version of it.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise CheckpointError(f"{path.name} is not the name of a checkpoint")
    try:
        with open_regular(path) as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
            if actual != match[2]:
                raise DamagedError(
                    f"{path} is damaged: its {file.tell()} bytes have the SHA-256 "
                    f"{actual}"
                )
            state = _parse(file)
    except OSError as error:
        raise UnreadableError(f"cannot read {path}: {error.strerror}") from error
    step = int(match[1])
    if not isinstance(state, dict) or state.get("step") != step:
        raise CheckpointError(f"{path} was refused: not a checkpoint of minitrain")
    _check_format(path, state)
    return Checkpoint(step, path, state)


def _parse(file: BinaryIO) -> Any:
    """Return what an open file holds; None where that is nothing that `save` writes."""
    try:
        with zipfile.ZipFile(file) as archive:
            sizes = [entry.file_size for entry in archive.infolist()]
        if sum(sizes) > file.seek(0, io.SEEK_END):
            return None  # compressed: it could unpack to any size
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # torch's own advice is to load it unsafely: never pass that on
        return None


def _check_format(path: Path, state: dict[str, Any]) -> None:
    """Refuse the format of another version, and name the version that reads it."""
    found = state.get("format")
    if found == FORMAT:
        return
    if type(found) is not int:
        raise CheckpointError(f"{path} was refused: not a checkpoint of minitrain")
    writer = _WRITERS.get(found, "another version")
    with suppress(LookupError, TypeError):
        writer = str(state["summary"]["versions"]["minitrain"])
    raise CheckpointError(
        f"{path} has the format {found}, and minitrain {__version__} reads the format "
        f"{FORMAT} alone. Nothing was changed: continue with the version that wrote "
        f"it, minitrain {writer}, or start anew in another directory"
    )


def find_all(folder: Path) -> list[Path]:
    """List the checkpoints in a folder by step, the newest last.

    Whatever else is there is ignored, be it a folder, a pipe or a device of that name.

    Raises:
        CheckpointError: The folder cannot be read.
    """
    try:
        if not folder.is_dir():
            return []
        named = [(path, _NAME.fullmatch(path.name)) for path in folder.iterdir()]
        found = [(int(match[1]), path) for path, match in named if match]
        return [path for _, path in sorted(found) if path.is_file()]
    except OSError as error:
        raise UnreadableError(f"cannot read {folder}: {error.strerror}") from error


def find_newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Find the newest checkpoint that is intact.

    A damaged one is passed over and kept, renamed `*.corrupt` where the folder allows
    it. One that cannot be read is passed over as well. All others are taken or refused:
    what is whole, but of another version or of nobody's, is left as it is.

    Returns:
        The checkpoint, or None where there is none yet; and what was wrong with newer
        ones.

    Raises:
        CheckpointError: There are checkpoints and none of them is intact, or the newest
            intact one is none that this version writes.
    """
    faults = []
    for path in reversed(find_all(folder)):
        try:
            return load(path), faults
        except UnreadableError as error:
            faults.append(str(error))
        except DamagedError as error:
            faults.append(str(error))
            with suppress(OSError):  # a read-only disk is no reason not to read
                path.rename(path.with_name(f"{path.name}.corrupt"))
    damaged = sorted(folder.glob("*.corrupt")) if folder.is_dir() else []
    if faults or damaged:
        faults = faults or [f"{path} is damaged" for path in damaged]
        raise CheckpointError(
            "\n".join([f"no checkpoint in {folder} is intact:", *faults])
            + "\nThe damaged files were kept. Start anew in another directory."
        )
    return None, []


def find(folder: Path, step: int) -> Checkpoint | None:
    """Return an intact checkpoint of a step, if there is one."""
    for path in find_all(folder):
        if _step_of(path) == step:
            with suppress(DamagedError, UnreadableError):
                return load(path)
    return None


def rotate(folder: Path, keep: int, best: int | None, last: int) -> None:
    """Remove old checkpoints of a run.

    What cannot be read does not count, and is not removed: it may be somebody else's,
    and a run could not be continued from it. Nor does what is newer than the last one:
    it was passed over when the run was continued.

    Args:
        folder: Where the checkpoints of the run are.
        keep: How many of the newest stay.
        best: The step of one that stays as well, if there is one.
        last: The step of the newest one that counts.

    Raises:
        OSError: One cannot be removed.
    """
    steps = {path: _step_of(path) for path in find_all(folder)}
    old = [path for path, step in steps.items() if step <= last]
    for path in [path for path in old if _can_be_read(path)][:-keep]:
        if steps[path] != best and not path.is_symlink():
            path.unlink()


def short_name(path: Path) -> str:
    """Return the first digits of a checkpoint's SHA-256, as its name has them."""
    return path.name.split(".")[1][:12]


def _step_of(path: Path) -> int:
    return int(path.name[5:].partition(".")[0])


def _can_be_read(path: Path) -> bool:
    try:
        open_regular(path).close()
    except OSError:
        return False
    return True
