"""What is in a folder, and damage to it."""

from pathlib import Path

from minitrain.runs.folder import LOCK

LOCKS = {LOCK, ".lock"}


def contents(folder: Path) -> dict[str, bytes]:
    """All files in the folder and below but locks, by their paths there."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in LOCKS
    }


def flipped(data: bytes, bit: int) -> bytes:
    """A copy with another value of one bit."""
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)
