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
from typing import Any, NamedTuple

import torch

from minitrain.system.errors import CheckpointError
from minitrain.system.files import replacing

FORMAT = 2


_NAME = re.compile(r"step-(\d{8,})\.([0-9a-f]{64})\.pt")


class Checkpoint(NamedTuple):
    """A checkpoint that was read: its step, where it is, and what it holds."""

    step: int
    path: Path
    state: dict[str, Any]


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write the state after `step` updates; it is durable when this returns.

    The state is a nested dict of tensors, numbers, strings, lists and None, so that
    `torch.load(path, weights_only=True)` reads it anywhere.

    Raises OSError where it cannot be written; all other checkpoints stay as they are.
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

    Raises CheckpointError where it is damaged, or was not written by `save`.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise CheckpointError(f"{path.name} is not the name of a checkpoint")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    actual = hashlib.sha256(data).hexdigest()
    if actual != match[2]:
        raise CheckpointError(
            f"{path} is damaged: its {len(data)} bytes have the SHA-256 {actual}"
        )
    try:
        _check_sizes(data)
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:  # torch's own advice is to load it unsafely: never pass that on
        state = None
    step = int(match[1])
    if (
        not isinstance(state, dict)
        or state.get("format") != FORMAT
        or state.get("step") != step
    ):
        raise CheckpointError(f"{path} was refused: not a checkpoint of minitrain")
    return Checkpoint(step, path, state)


def _check_sizes(data: bytes) -> None:
    """Refuse an archive that would unpack to more than its own size."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > len(data):
            raise ValueError("the archive is compressed")


def listed(folder: Path) -> list[Path]:
    """The checkpoints in a folder, by step, the newest last; strangers are ignored."""
    if not folder.is_dir():
        return []
    named = [(path, _NAME.fullmatch(path.name)) for path in folder.iterdir()]
    found = [(int(match[1]), path) for path, match in named if match]
    return [path for _, path in sorted(found) if path.is_file()]


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is intact, and what was wrong with newer ones.

    A damaged one is kept, renamed `*.corrupt` where the folder allows it.

    Raises CheckpointError where there are checkpoints and none of them is intact.
    """
    faults = []
    for path in reversed(listed(folder)):
        try:
            return load(path), faults
        except CheckpointError as error:
            faults.append(str(error))
            if isinstance(error.__cause__, OSError):
                continue  # not read: it may be intact
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


def rotate(folder: Path, keep: int, best: int) -> None:
    """Remove all but the newest `keep` checkpoints, that of step `best`, and links."""
    for path in listed(folder)[:-keep]:
        step = int(path.name.split("-")[1].split(".")[0])
        if step != best and not path.is_symlink():
            path.unlink()
