"""Files are replaced whole and durably or not at all; each run has its own folder."""

import errno
import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness.files import contents

from minitrain.runs.folder import check_unused, create_folder
from minitrain.system.errors import RunDirectoryError, StorageError
from minitrain.system.files import replacing

OLD, NEW = b"old", b"new" * 100_000  # more than Python buffers


@pytest.fixture(params=[OLD, None], ids=["old file", "no file"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "file"
    if request.param is not None:
        path.write_bytes(request.param)
    return path


def test_new_content_takes_the_place_of_the_old(path: Path):
    before = contents(path.parent)
    with replacing(path) as file:
        file.write(NEW)
        assert path.exists() == ("file" in before)
        if before:
            assert path.read_bytes() == OLD
    assert contents(path.parent) == {"file": NEW}


def test_missing_folders_are_made(tmp_path: Path):
    with replacing(tmp_path / "a" / "b" / "file") as file:
        file.write(NEW)
    assert contents(tmp_path / "a" / "b") == {"file": NEW}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_while_writing_changes_nothing(path: Path, error: type[BaseException]):
    before = contents(path.parent)
    with pytest.raises(error), replacing(path) as file:
        file.write(NEW)
        raise error
    assert contents(path.parent) == before


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_error_of_the_disk_changes_nothing(
    path: Path, call: str, monkeypatch: pytest.MonkeyPatch
):
    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = contents(path.parent)
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"), replacing(path) as file:
        file.write(NEW)
    assert contents(path.parent) == before


@pytest.mark.skipif(os.name != "posix", reason="folders are synced on POSIX alone")
def test_bytes_are_on_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls: list[tuple[str, object]] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            calls.append(("fsync folder", status.st_ino))
        else:
            calls.append(("fsync file", status.st_size))
        fsync(descriptor)

    def recorded_replace(source: Path, target: Path) -> None:
        calls.append(("replace", target))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    with replacing(tmp_path / "file") as file:
        file.write(NEW)
        file.write(OLD)  # so little that Python still has it in its buffer
    assert calls == [
        ("fsync file", len(NEW + OLD)),
        ("replace", tmp_path / "file"),
        ("fsync folder", tmp_path.stat().st_ino),
    ]


@pytest.mark.skipif(os.name != "posix", reason="rights of files are POSIX's")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_rights_follow_the_umask(path: Path, umask: int):
    before = os.umask(umask)
    try:
        with replacing(path) as file:
            file.write(NEW)
    finally:
        after = os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert after == umask


def test_umask_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It belongs to the process: two threads that ask for it can leave it at 0."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("umask was changed"))
    with replacing(tmp_path / "file") as file:
        file.write(NEW)


# Run directories


def test_new_and_empty_folders_are_unused(tmp_path: Path):
    check_unused(None)
    check_unused(tmp_path)
    check_unused(tmp_path / "new")
    assert contents(tmp_path) == {}


def test_used_folders_are_refused_and_left_alone(tmp_path: Path):
    file = tmp_path / "file"
    file.write_bytes(OLD)
    with pytest.raises(RunDirectoryError, match=f"{tmp_path} is not empty"):
        check_unused(tmp_path)
    with pytest.raises(StorageError, match=f"{file} is a file"):
        check_unused(file)
    assert contents(tmp_path) == {"file": OLD}


def test_named_folder_is_created(tmp_path: Path):
    folder = tmp_path / "a" / "b"
    assert create_folder(folder, "unused name") == folder
    assert folder.is_dir() and create_folder(folder, "again") == folder


def test_simultaneous_runs_have_fresh_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(create_folder, [None] * 50, ["mnist-mlp"] * 50))
    assert len(set(folders)) == 50
    assert sorted(folders) == sorted(Path("runs").iterdir())
    assert all(re.fullmatch(r"mnist-mlp-\d{8}-\d{6}(-\d+)?", f.name) for f in folders)


@pytest.mark.parametrize("name", ["runs", "runs/mnist"])
def test_folder_that_cannot_be_created_is_told(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("runs").write_bytes(OLD)
    folder = None if name == "runs" else Path(name)
    with pytest.raises(StorageError, match=r"cannot create .*runs.* --run-dir"):
        create_folder(folder, "mnist")
    assert contents(tmp_path) == {"runs": OLD}
