"""Event files: how TensorBoard's records are framed, written and read."""

import mmap
import os
import struct
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import crc32c
from google.protobuf.message import DecodeError
from tensorboard.compat.proto import event_pb2

from minitrain.system.files import open_regular
from minitrain.system.terminal import warn

# Classes that protobuf makes at run time, where no type checker sees them.
Event: Any = vars(event_pb2)["Event"]

MOST_WAITING = 2**26
"""How many bytes wait in memory where they cannot be written: those of hours."""

MOST_SKIPPED = 2**20
"""How many bytes are searched for the next record where one is damaged."""


def frame_record(data: bytes) -> bytes:
    """Return a record of an event file: length and bytes, each with its checksum.

    TensorBoard's own writer adds up the checksum in Python, in 60 times the time.
    """
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    """Return the CRC-32C, rotated and shifted as TensorFlow's records have it."""
    crc = crc32c.crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def blank(length: int) -> bytes:
    """Return an event that says nothing, in so many bytes, at least six.

    They are a field that the format does not have, and that every reader passes over.
    """
    size = length - 6
    digits = bytes(size >> 7 * i & 0x7F | (0x80 if i < 4 else 0) for i in range(5))
    return bytes([15 << 3 | 2]) + digits + bytes(size)


def first_record() -> bytes:
    """Return what an event file begins with: the version of its format."""
    return Event(
        wall_time=time.time(), file_version="brain.Event:2"
    ).SerializeToString()


class EventFile:
    """An event file that grows, on a disk that may be full for a while.

    What cannot be written waits until it can, and the file ends with a whole record
    all the time: half of one would hide whatever follows it. That writing fails is told
    once, and so is that it goes on, with what was lost if too much had to wait.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        self._size = os.fstat(self._file.fileno()).st_size
        self._waiting: deque[bytes] = deque()
        self._num_bytes = 0
        self._num_lost = 0
        self._is_failing = False

    def add(self, record: bytes) -> None:
        """Take in a record, to be written at the next flush."""
        frame = frame_record(record)
        if self._num_bytes + len(frame) > MOST_WAITING:
            self._num_lost += 1
            return
        self._waiting.append(frame)
        self._num_bytes += len(frame)

    def flush(self) -> None:
        """Hand all records to the system, which keeps them if the process dies."""
        if not self._waiting:
            return
        try:
            self._append()
        except OSError as error:
            self._note_failure(error)
            return
        if self._is_failing:
            lost = f"; {self._num_lost} were lost" if self._num_lost else ""
            warn(f"points for TensorBoard are written again to {self.path}{lost}")
        self._is_failing, self._num_lost = False, 0

    def sync(self) -> None:
        """Flush, and wait until all is on disk: it survives a power cut."""
        self.flush()
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            self._note_failure(error)

    def close(self) -> None:
        """Flush, and close the file."""
        if self._file.closed:
            return
        self.flush()
        if num_lost := len(self._waiting) + self._num_lost:
            warn(f"warning: the last {num_lost} points for TensorBoard were lost")
        with suppress(OSError):
            self._file.close()

    def _append(self) -> None:
        """Write what waits, or as many whole records of it as there is room for."""
        if self._is_failing:
            os.ftruncate(self._file.fileno(), self._size)
        data, num_written = memoryview(b"".join(self._waiting)), 0
        try:
            while num_written < len(data):
                num_written += self._file.write(data[num_written:]) or 0
        finally:
            while self._waiting and len(self._waiting[0]) <= num_written:
                frame = self._waiting.popleft()
                num_written -= len(frame)
                self._num_bytes -= len(frame)
                self._size += len(frame)
            if num_written:
                os.ftruncate(self._file.fileno(), self._size)

    def _note_failure(self, error: OSError) -> None:
        if not self._is_failing:
            warn(
                f"warning: points for TensorBoard cannot be written to {self.path}: "
                f"{error.strerror}; training goes on, and they wait"
            )
        self._is_failing = True


class Scan(NamedTuple):
    """What an event file holds."""

    records: list[bytes]
    """Those that are whole, each of them an event."""
    starts: list[int]
    """Where each of them begins."""
    last: int
    """The last step."""
    last_before: int
    """The last step before anything that cannot be read."""
    num_damaged: int
    """Bytes between records that cannot be read, or are of records that are none."""
    num_at_end: int
    """Bytes after the last record."""


def scan(path: Path) -> Scan:
    """Read the records of an event file, also those behind a damaged one.

    Raises:
        OSError: It cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            return Scan([], [], 0, 0, 0, 0)
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    records: list[bytes] = []
    starts: list[int] = []
    last = last_before = num_damaged = end = 0
    with data:
        for start, record in _split(data):
            num_damaged += start - end
            end = start + len(frame_record(record))
            try:
                last = max(last, Event.FromString(record).step)
            except DecodeError:
                num_damaged += len(frame_record(record))
                continue
            records.append(record)
            starts.append(start)
            last_before = last_before if num_damaged else last
    return Scan(records, starts, last, last_before, num_damaged, size - end)


def _split(data: mmap.mmap) -> Iterator[tuple[int, bytes]]:
    """Yield where each whole record starts, and its bytes without their frame."""
    at, searched = 0, 0
    while at + 16 <= len(data) and searched <= MOST_SKIPPED:
        if data[at + 8 : at + 12] == _checksum(data[at : at + 8]):
            (length,) = struct.unpack_from("<Q", data, at)
            record = data[at + 12 : at + 12 + length]
            if data[at + 12 + length : at + 16 + length] == _checksum(record):
                yield at, record
                at, searched = at + 16 + length, 0
                continue
        at, searched = at + 1, searched + 1
