"""The program under torchrun: killed ranks, signals, two machines, and bad settings."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness.files import contents
from harness.runs import command, points, verified

from minitrain import tags
from minitrain.runs.summary import read_summary

pytestmark = pytest.mark.usefixtures("few_digits")

NUM_KILLS = int(os.environ.get("MINITRAIN_NUM_TORCHRUN_KILLS", 1))
NUM_SIGNALS = int(os.environ.get("MINITRAIN_NUM_TORCHRUN_SIGNALS", 1))
LONG = ("--epochs", 20, "--shards", 4, "--checkpoint.every", 7)


def torchrun(
    *flags: object, folder: Path, options: tuple = (), num: int = 2
) -> list[str]:
    """Some processes of the program on few digits."""
    of_torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(num)]
    program = command("--run-dir", folder, *flags)[1:]
    return [sys.executable, *of_torchrun, *map(str, options), *program]


@contextmanager
def started(words: list[str], out: Path) -> Iterator[subprocess.Popen]:
    """Start torchrun with its output in a file, and see that nobody outlives it."""
    with out.open("w") as file:
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield process
        process.wait(timeout=100)
        assert not ranks_of(out.parent), "a process was left behind"
    finally:
        for pid in [process.pid, *ranks_of(out.parent)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()


def ranks_of(place: Path) -> list[int]:
    """The processes that train in a folder below this one, torchrun itself aside."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        is_ours = any(word.startswith(os.fsencode(place)) for word in words)
        if is_ours and b"torch.distributed.run" not in words:
            found.append(int(path.parent.name))
    return sorted(found)


def wait_for(text: str, out: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 90
    while text not in out.read_text():
        assert time.monotonic() < deadline, out.read_text()
        assert process.poll() is None, out.read_text()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def whole(few_digits, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """The fingerprint and the curves of one undisturbed process."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run(command("--run-dir", folder, *LONG), check=True, timeout=100)
    return told(folder)


def told(folder: Path) -> tuple:
    summary = read_summary(folder) or {}
    curves = {k: x for k, x in points(folder).items() if k[0] != tags.WAITING}
    return summary["fingerprint"], summary["test_accuracy"], curves


def test_torchrun_goes_on_by_itself_after_ranks_were_killed(
    whole, tmp_path, rng
) -> None:
    """Whichever rank it is, and without a word about where to go on."""
    for life in range(NUM_KILLS):
        folder, out = tmp_path / f"{life}" / "run", tmp_path / f"{life}" / "out"
        out.parent.mkdir()
        words = torchrun(*LONG, folder=folder, options=("--max-restarts", 3))
        with started(words, out) as process:
            wait_for(f"saved checkpoint step={rng.randrange(1, 20) * 7} ", out, process)
            os.kill(rng.choice(ranks_of(out.parent)), signal.SIGKILL)
        text = out.read_text()
        assert process.returncode == 0, text
        assert re.search(r"error: rank [01] of 2 has died. Every checkpoint", text)
        assert f"restart 1: continuing with --run-dir {folder} --resume" in text
        assert told(folder) == whole


@pytest.mark.parametrize("num", [1, 2])
def test_a_start_that_was_refused_is_not_continued(num, tmp_path) -> None:
    """What an earlier run has left is not that of the group that is started again."""
    folder, out = tmp_path / "run", tmp_path / "out"
    few = ("--shards", 4, "--threads", 1)
    short = command("--run-dir", folder, "--epochs", 1, *few)
    subprocess.run(short, check=True, capture_output=True)
    before, options = contents(folder), ("--max-restarts", 1)
    words = torchrun("--epochs", 2, *few, folder=folder, options=options, num=num)
    with started(words, out) as process:
        process.wait(timeout=100)
    assert process.returncode != 0 and "continuing with" not in out.read_text()
    assert out.read_text().count("is not empty") == 2  # of both starts
    assert contents(folder) == before


def test_one_process_under_torchrun_goes_on_by_itself(whole, tmp_path) -> None:
    folder, out = tmp_path / "run", tmp_path / "out"
    words = torchrun(*LONG, folder=folder, options=("--max-restarts", 1), num=1)
    with started(words, out) as process:
        wait_for("saved checkpoint step=14 ", out, process)
        (rank,) = ranks_of(tmp_path)
        os.kill(rank, signal.SIGKILL)
    assert process.returncode == 0 and "restart 1: continuing" in out.read_text()
    assert told(folder) == whole


def test_a_signal_to_torchrun_ends_all_after_one_step(whole, tmp_path, rng) -> None:
    for life in range(NUM_SIGNALS):
        folder, out = tmp_path / f"{life}" / "run", tmp_path / f"{life}" / "out"
        out.parent.mkdir()
        with started(torchrun(*LONG, folder=folder), out) as process:
            wait_for(f"saved checkpoint step={rng.randrange(1, 20) * 7} ", out, process)
            os.kill(process.pid, rng.choice([signal.SIGTERM, signal.SIGINT]))
        text, summary = out.read_text(), read_summary(folder) or {}
        assert process.returncode != 0
        assert summary["status"] == "interrupted", text
        promised = [
            int(step) for step in re.findall(r"saved checkpoint step=(\d+)", text)
        ]
        assert len(promised) == len(set(promised))
        last = max(verified(folder / "checkpoints"))
        assert last == promised[-1] == summary["steps"]
        again = command("--run-dir", folder, *LONG, "--resume")
        subprocess.run(again, check=True, timeout=100)
        assert told(folder) == whole


def test_two_machines_are_as_one_process(whole, tmp_path) -> None:
    """Two agents of torchrun that meet over the loopback network, one rank each."""
    folder, port = tmp_path / "run", 20_000 + os.getpid() % 10_000
    meeting = ("--nnodes", 2, "--rdzv-backend", "c10d", "--rdzv-id", "test")
    meeting += ("--rdzv-endpoint", f"127.0.0.1:{port}")
    words = torchrun(*LONG, folder=folder, options=meeting)
    words[words.index("--nproc-per-node") + 1] = "1"
    out = tmp_path / "out"
    with started(words, out) as one, started(words, tmp_path / "out 2") as other:
        other.wait(timeout=100)
        one.wait(timeout=100)
    assert (one.returncode, other.returncode) == (0, 0), out.read_text()
    assert told(folder) == whole


def test_a_bad_setting_is_told_once(tmp_path) -> None:
    out = tmp_path / "out"
    words = torchrun("--shards", 3, folder=tmp_path / "run")
    with started(words, out) as process:
        process.wait(timeout=100)
    text = out.read_text()
    assert text.count("error: shards: 3 is not a power of two") == 1
    assert "exitcode: 2" in text.replace(" ", "").replace("exitcode:", "exitcode: ")
    assert not (tmp_path / "run").exists()
