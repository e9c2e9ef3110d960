"""Event files on failing disks, and what is left of damaged ones."""

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

from minitrain.runs import events
from minitrain.runs.board import Board
from minitrain.runs.events import Event, EventFile, blank, frame_record
from minitrain.runs.points import read_curves

resource = pytest.importorskip("resource", reason="limits are POSIX's")


def read(folder: Path) -> dict[int, float]:
    """The points of one curve, as TensorBoard reads them, each there once."""
    accumulator = EventAccumulator(str(folder), {"scalars": 0}).Reload()
    points = accumulator.Scalars("loss") if accumulator.Tags()["scalars"] else []
    found = {point.step: point.value for point in points}
    assert len(found) == len(points)
    return found


def write(folder: Path, steps: range) -> Path:
    """An event file with a point for each step; its path."""
    with Board(folder) as board:
        for step in steps:
            board.log(step, {"loss": step})
    return max(folder.glob("events.out.tfevents.*"))


def resume(folder: Path, after: int) -> dict[int, float]:
    """The points after a run is continued there, and makes one more step."""
    with Board(folder, resume_after=after) as board:
        board.log(after + 1, {"loss": after + 1})
    return read(folder)


def records(path: Path) -> list[bytes]:
    return list(RawEventFileLoader(str(path)).Load())


# A disk that is full for a while


@contextmanager
def limited_to(size: int) -> Iterator[None]:
    """Let no file grow beyond a size: what is over it is not written, as when full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("room", [0, 1, 30, 200])
def test_points_wait_while_the_disk_is_full(
    room: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """With room for a part of a record, or for some: the file is whole at any time."""
    with Board(tmp_path) as board:
        board.log(1, {"loss": 1})
        board.flush()
        (path,) = tmp_path.iterdir()
        with limited_to(path.stat().st_size + room):
            for step in range(2, 50):
                board.log(step, {"loss": step})
                board.flush()
                assert read(tmp_path) == {k: k for k in range(1, len(records(path)))}
            assert path.stat().st_size == sum(
                len(frame_record(r)) for r in records(path)
            )
        error = capsys.readouterr().err
        assert error.count("cannot be written") == 1 == error.count("File too large")
        board.log(50, {"loss": 50})
        board.flush()
        assert read(tmp_path) == {step: step for step in range(1, 51)}
        error = capsys.readouterr().err
        assert error == f"points for TensorBoard are written again to {path}\n"
    assert capsys.readouterr().err == ""


def test_what_never_finds_room_is_told_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = write(tmp_path, range(1, 4))
    file = EventFile(path)
    file.add(b"a record")
    with limited_to(path.stat().st_size):
        file.close()
    assert "the last 1 points for TensorBoard were lost" in capsys.readouterr().err
    assert read(tmp_path) == {1: 1, 2: 2, 3: 3}


def test_a_gap_is_told_where_too_much_waits(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    board = Board(tmp_path)
    (path,) = tmp_path.iterdir()
    monkeypatch.setattr(events, "MOST_WAITING", 100)
    with limited_to(path.stat().st_size):
        for step in range(1, 9):
            board.log(step, {"loss": step})
            board.flush()
    board.flush()
    found = read(tmp_path)
    lost = 8 - len(found)
    assert 0 < lost < 8 and found == {k: k for k in range(1, 9 - lost)}
    assert f"written again to {path}; {lost} were lost\n" in capsys.readouterr().err
    board.log(9, {"loss": 9})
    board.close()
    assert 9 in read(tmp_path) and capsys.readouterr().err == ""


def test_a_sync_that_fails_is_told_and_ends_nothing(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    with Board(tmp_path) as board:
        with monkeypatch.context() as patch:
            error = OSError(errno.EIO, os.strerror(errno.EIO))
            patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(error))
            board.sync()
            board.sync()
        assert capsys.readouterr().err.count("Input/output error") == 1
        board.log(1, {"loss": 1})
        board.sync()
        assert "are written again" in capsys.readouterr().err
    assert read(tmp_path) == {1: 1}


# Damage


def flip(path: Path, bit: int) -> bytes:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    return bytes(data)


@pytest.mark.parametrize("part", ["length", "its checksum", "data", "their checksum"])
def test_a_flipped_bit_costs_its_record_alone(
    part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = write(tmp_path, range(1, 21))
    frames = [frame_record(record) for record in records(path)]
    start = sum(map(len, frames[:8]))  # of step 8, after the version
    offset = {"length": 0, "its checksum": 9, "data": 14, "their checksum": -1}[part]
    position = start + (offset if offset >= 0 else len(frames[8]) - 1)
    damaged = flip(path, 8 * position + 3)
    assert resume(tmp_path, 20) == {s: s for s in range(1, 22) if s != 8}
    told = re.search(
        r"after step (\d+) may be missing: (\d+) bytes of (.*) cannot be read; it is "
        r"kept as (.*)\n",
        capsys.readouterr().err,
    )
    assert told is not None
    assert told.groups()[:3] == ("7", str(len(frames[8])), str(path))
    assert (tmp_path / told[4]).read_bytes() == damaged
    assert told[4].endswith(".corrupt") and "tfevents" not in told[4]
    assert not path.exists()


def test_every_bit_may_flip(tmp_path: Path):
    """Nothing ends the run, and one record is lost at the most."""
    whole = write(tmp_path / "whole", range(1, 6)).read_bytes()
    for bit in range(0, 8 * len(whole), 37):
        folder = tmp_path / str(bit)
        folder.mkdir()
        path = folder / "events.out.tfevents.1"
        path.write_bytes(whole)
        damaged = flip(path, bit)
        assert len(resume(folder, 5)) >= 5
        kept = [file.read_bytes() for file in folder.glob("*.corrupt")]
        assert kept == [damaged]


@pytest.mark.parametrize(
    "hole",
    [
        b"",
        b"\0" * 4096,
        b"\xff" * 4096,
        frame_record(b"\xff" * 30),
        frame_record(b"\x0f"),
    ],
    ids=["nothing", "zeros", "ones", "no event", "half an event"],
)
def test_what_follows_a_hole_is_kept(
    hole: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Also where a record is framed well and is no event."""
    path = write(tmp_path, range(1, 21))
    frames = [frame_record(record) for record in records(path)]
    frames[8] = hole
    path.write_bytes(b"".join(frames))
    assert resume(tmp_path, 20) == {s: s for s in range(1, 22) if s != 8}
    error = capsys.readouterr().err
    assert (f"{len(hole)} bytes of {path} cannot be read" in error) == bool(hole)
    assert len(list(tmp_path.glob("*.corrupt"))) == bool(hole)


def test_an_end_that_a_kill_cut_off_is_no_damage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """What belongs to the checkpoint was on disk before; what is cut off came after."""
    path = write(tmp_path, range(1, 21))
    path.write_bytes(path.read_bytes()[:-5])
    assert resume(tmp_path, 12) == {step: step for step in range(1, 14)}
    assert capsys.readouterr().err == "" and not list(tmp_path.glob("*.corrupt"))


def test_an_end_that_is_missing_too_early_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = write(tmp_path, range(1, 21))
    path.write_bytes(path.read_bytes()[:-5])
    assert resume(tmp_path, 20) == {step: step for step in range(1, 22) if step != 20}
    assert "after step 19 may be missing" in capsys.readouterr().err
    assert len(list(tmp_path.glob("*.corrupt"))) == 1


# What is no file, or not ours


def make(kind: str, path: Path) -> None:
    actions: dict[str, Callable[[], object]] = {
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "device": lambda: path.symlink_to("/dev/zero"),
        "dangling": lambda: path.symlink_to("nowhere"),
        "empty": path.touch,
    }
    actions[kind]()


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "dangling", "empty"])
def test_what_is_no_event_file_is_ignored(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write(tmp_path, range(1, 6))
    other = tmp_path / "events.out.tfevents.0"
    make(kind, other)
    with Board(tmp_path, resume_after=5):
        pass
    assert capsys.readouterr().err == ""
    assert os.path.lexists(other) == (kind != "empty")
    if os.path.lexists(other):
        other.rmdir() if kind == "folder" else other.unlink()
    assert read(tmp_path) == {step: step for step in range(1, 6)}


def test_a_file_that_cannot_be_opened_is_told_and_stays(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    """It may be another user's: root's rights would prove nothing here."""
    path = write(tmp_path, range(1, 6))
    whole = path.read_bytes()

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(events, "open_regular", refuse)
    with Board(tmp_path, resume_after=5):
        pass
    assert path.read_bytes() == whole
    error = capsys.readouterr().err
    assert f"Permission denied: '{path}'" in error


def test_a_giant_hole_is_not_searched_for_ever(tmp_path: Path):
    path = write(tmp_path, range(1, 6))
    os.truncate(path, 10**10)
    assert resume(tmp_path, 5) == {step: step for step in range(1, 7)}


# Curves, read to be drawn


def test_curves_are_read_in_the_order_of_steps_and_once(tmp_path: Path):
    write(tmp_path, range(4, 7))
    path = write(tmp_path / "earlier", range(1, 4))
    (tmp_path / "events.out.tfevents.9").write_bytes(path.read_bytes())
    (tmp_path / "events.out.tfevents.99").write_bytes(path.read_bytes())
    assert read_curves(tmp_path) == {"loss": ([*range(1, 7)], [*range(1, 7)])}


def test_curves_of_a_damaged_file_are_read_and_nothing_is_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = write(tmp_path, range(1, 6))
    (start, *_) = (len(frame_record(record)) for record in records(path))
    damaged = flip(path, 8 * (start + 20))
    assert read_curves(tmp_path) == {"loss": ([2, 3, 4, 5], [2, 3, 4, 5])}
    assert "points after step 0 may be missing" in capsys.readouterr().err
    assert path.read_bytes() == damaged and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "dangling", "empty"])
def test_without_an_event_file_there_are_no_curves(kind: str, tmp_path: Path):
    make(kind, tmp_path / "events.out.tfevents.0")
    assert read_curves(tmp_path) == read_curves(tmp_path / "nowhere") == {}


# A TensorBoard that is open while a run is continued


@pytest.mark.parametrize("after", [0, 7, 10])
def test_whoever_has_read_a_file_reads_on_when_the_run_is_continued(
    after: int, tmp_path: Path
):
    """A loader stays with a file where it is, also where that file was deleted."""
    write(tmp_path, range(1, 11))
    (path,) = tmp_path.iterdir()
    inode, before = path.stat().st_ino, records(path)
    watching = EventAccumulator(str(tmp_path), {"scalars": 0}).Reload()
    assert len(watching.Scalars("loss")) == 10
    with Board(tmp_path, resume_after=after) as board:
        for step in range(after + 1, 21):
            board.log(step, {"loss": step})
    seen = [point.step for point in watching.Reload().Scalars("loss")]
    assert seen == [*range(1, 11), *range(after + 1, 21)]
    assert read(tmp_path) == {step: step for step in range(1, 21)}
    assert path.stat().st_ino == inode and list(tmp_path.iterdir()) == [path]
    assert records(path)[: after + 1] == before[: after + 1]
    assert list(map(len, records(path)))[:11] == list(map(len, before))


@pytest.mark.parametrize("length", [6, 7, 100, 133, 134, 135, 20_000])
def test_a_blank_has_any_length_and_says_nothing(length: int):
    data = blank(length)
    event = Event.FromString(data)
    assert len(data) == length
    assert event.WhichOneof("what") is None and (event.step, event.wall_time) == (0, 0)


def test_a_run_is_continued_on_a_disk_that_is_full(tmp_path: Path):
    """To drop what came after the checkpoint takes no room."""
    path = write(tmp_path, range(1, 11))
    with limited_to(path.stat().st_size):
        board = Board(tmp_path, resume_after=7)
    board.log(8, {"loss": 8})
    board.close()
    assert read(tmp_path) == {step: step for step in range(1, 9)}
