"""Event files: how TensorBoard's records are framed, kept and read."""

import itertools
import operator
import struct
import time
from pathlib import Path
from typing import Any

import crc32c
from tensorboard.compat.proto import event_pb2

from minitrain.runs.tags import AT_THE_END
from minitrain.system.files import replacing
from minitrain.system.terminal import warn

# Classes that protobuf makes at run time, where no type checker sees them.
Event: Any = vars(event_pb2)["Event"]


def framed(data: bytes) -> bytes:
    """A record of an event file: its length and its bytes, each with its checksum.

    TensorBoard's own writer adds up the checksum in Python, in 60 times the time.
    """
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    """The CRC-32C, rotated and shifted as the format of TensorFlow's records asks."""
    crc = crc32c.crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def keep_until(step: int, folder: Path, path: Path) -> None:
    """Gather the events up to a step, of all files in the folder, in the one at `path`.

    The order of steps decides, not that of clocks or names, which can go backwards.
    Old files are removed when the new one is complete.
    """
    files = sorted(folder.glob("events.out.tfevents.*"))
    found = itertools.chain.from_iterable(_records(file, step) for file in files)
    version = Event(wall_time=time.time(), file_version="brain.Event:2")
    kept = [(0, version.SerializeToString())]
    # A copy that a kill left beside the original has the same bytes: once is enough.
    for record in dict.fromkeys(found):
        event = Event.FromString(record)
        # The end comes anew: how the run ended, and what is told and shown then.
        is_end = any(
            value.tag in AT_THE_END or value.HasField("image")
            for value in event.summary.value
        )
        if event.summary.value and event.step <= step and not is_end:
            kept.append((event.step, record))
    with replacing(path) as file:
        for _, record in sorted(kept, key=operator.itemgetter(0)):
            file.write(framed(record))
    for file in files:
        file.unlink()


def _records(file: Path, step: int) -> list[bytes]:
    """The records of an event file; warns where one up to this step may be damaged.

    A kill cuts off the last one, but what belongs to a checkpoint was on disk before.
    """
    # Slow to import, and of no use to a run that begins.
    from tensorboard.backend.event_processing import event_file_loader

    records = list(event_file_loader.RawEventFileLoader(str(file)).Load())
    unread = file.stat().st_size - sum(len(record) + 16 for record in records)
    last = max((Event.FromString(record).step for record in records), default=0)
    if unread and last < step:
        warn(
            f"warning: {file} cannot be read to its end, {unread} bytes: points for "
            f"TensorBoard after step {last} may be missing"
        )
    return records
