"""A lock keeps other processes out, names its holder, and dies with it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minitrain.system.lock import locked

HOLDER = """
import sys, time
from pathlib import Path
from minitrain.system.lock import locked

with locked(Path(sys.argv[1]), busy=sys.exit):
    print("holds", flush=True)
    sys.stdin.read()
"""


class Busy(Exception):
    pass


def refuse(holder: str) -> None:
    raise Busy(holder)


def holding(path: Path) -> subprocess.Popen[str]:
    """A process that holds the lock until it is killed, or its input ends."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLDER, str(path)]
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None and process.stdout.readline() == "holds\n"
    return process


def test_another_process_is_kept_out_and_told_of_the_holder(tmp_path: Path) -> None:
    with holding(tmp_path / "lock") as process:
        for _ in range(2):  # being refused changes nothing
            named = pytest.raises(Busy, match=rf"^process {process.pid} on .* since ")
            with named, locked(tmp_path / "lock", refuse):
                pytest.fail("both have it")
        process.communicate()
    with locked(tmp_path / "lock", refuse):
        assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_it_dies_with_its_holder(tmp_path: Path) -> None:
    with holding(tmp_path / "lock") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with locked(tmp_path / "lock", refuse):
        pass


def test_it_is_waited_for_where_busy_returns(tmp_path: Path) -> None:
    with holding(tmp_path / "lock") as process:
        told: list[str] = []

        def release(holder: str) -> None:
            told.append(holder)
            process.communicate()

        with locked(tmp_path / "lock", release):
            assert f"process {process.pid} " in told[0]


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX's links")
def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "lock").symlink_to("victim")
    with pytest.raises(OSError), locked(tmp_path / "lock", refuse):
        pytest.fail("it was followed")
    assert (tmp_path / "victim").read_text() == "mine"
