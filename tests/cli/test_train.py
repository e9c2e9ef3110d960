"""The program itself: killed, asked to end, and put into places that fail it.

Each repetition starts a process, which imports torch: by default they are few.
`scripts/prove.py` runs as many as the README speaks of.
"""

import json
import os
import pty
import random
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from harness.files import contents
from harness.runs import command, points, start, verified

from minitrain.experiment import Config, runner
from minitrain.experiment.reading import parse
from minitrain.runs.folder import LOCK
from minitrain.system import terminal

NUM_KILLS = int(os.environ.get("MINITRAIN_NUM_COMMAND_KILLS", "2"))
NUM_SIGNALS = int(os.environ.get("MINITRAIN_NUM_SIGNALS", "4"))
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]

pytestmark = [
    pytest.mark.usefixtures("few_digits"),
    pytest.mark.skipif(os.name != "posix", reason="needs POSIX's signals and mounts"),
]


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


# Kills and signals


def sockets(process: subprocess.Popen) -> list[str]:
    """The sockets of a process: a run needs none, let alone one that listens."""
    found = []
    for file in Path(f"/proc/{process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since
            found.append(os.readlink(file))
    return [file for file in found if file.startswith("socket")]


def test_kills_of_the_program_change_nothing(rng: random.Random, tmp_path: Path):
    """$MINITRAIN_NUM_COMMAND_KILLS tells how many, one after the other, resumed.

    A model with momentum, shuffling and dropout; where a run comes to its end before
    the kills do, another one begins.
    """
    flags = ("--epochs", 6, "--data.batch-size", 10, "--model.dropout", 0.2)
    flags += ("--checkpoint.every", 7, "--log.every", 1, "--resume", "--run-dir")
    begun, undisturbed = time.monotonic(), tmp_path / "undisturbed"
    undisturbed.mkdir()  # a run begins with --resume in an empty folder alone
    process = start(*flags, undisturbed)
    assert process.stdout is not None
    process.stdout.readline()
    boot = time.monotonic() - begun
    process.communicate()
    training = time.monotonic() - begun - boot
    num_kills, runs, promised = 0, 1, 0
    while num_kills < NUM_KILLS or process.returncode != 0:
        folder = tmp_path / str(runs)
        folder.mkdir(exist_ok=True)
        process = start(*flags, folder)
        assert process.stdout is not None and process.stderr is not None
        told = ""
        if num_kills < NUM_KILLS:
            if rng.random() < 0.2:
                time.sleep(rng.uniform(0, boot))
            else:
                told = process.stdout.readline()
                if Path("/proc").exists():
                    assert sockets(process) == []
                time.sleep(rng.uniform(0, training / 6))
            process.kill()
        out, error = process.communicate()
        saved = re.findall(r"saved checkpoint step=(\d+) .*\n", told + out)
        promised = max([promised, *map(int, saved)])
        if process.returncode == 0:
            kept, expected = summary_of(folder), summary_of(undisturbed)
            assert kept["fingerprint"] == expected["fingerprint"]
            assert kept["status"] == "finished" and kept["steps"] == 384
            assert points(folder) == points(undisturbed)
            runs, promised = runs + 1, 0
        else:
            assert process.returncode == -signal.SIGKILL, error
            num_kills += 1
            assert not promised or promised in verified(folder / "checkpoints")
    print(f"{num_kills} kills of {runs - 1} runs: each ended as if there were none")


def is_listening(process: subprocess.Popen, number: signal.Signals) -> bool:
    """Whether the program has set its handlers: Python sets SIGINT's before."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc to see handlers")
def test_signals_end_the_program_at_any_time_of_its_life(
    rng: random.Random, tmp_path: Path
):
    """$MINITRAIN_NUM_SIGNALS tells how many, evenly spread over start, imports, data,
    training, evaluation, saving, picture and end. No step that was made is lost.
    """
    flags = ("--epochs", 40, "--model.dropout", 0.2, "--run-dir")
    begun = time.monotonic()
    assert start(*flags, tmp_path / "undisturbed").communicate()[1] == ""
    life = time.monotonic() - begun
    expected = summary_of(tmp_path / "undisturbed")
    ends: dict[str, int] = {}
    slowest = 0.0
    for i in range(NUM_SIGNALS):
        folder, number = tmp_path / str(i), rng.choice(SIGNALS)
        process = start(*flags, folder)
        time.sleep(life * (i + rng.random()) / NUM_SIGNALS)
        early = process.poll() is None and not is_listening(process, number)
        sent = time.monotonic()
        process.send_signal(number)
        out, error = process.communicate()
        slowest = max(slowest, time.monotonic() - sent)
        code = process.returncode
        where = f"{number.name} after {sent - begun:.2f} s: {code}, {error}"
        is_done = (folder / "summary.json").exists()
        kept = summary_of(folder) if is_done else {"status": "not begun"}
        if is_done and kept["status"] == "finished":
            assert code in (0, 128 + number, -number), where
        elif early and not folder.exists():
            assert code in (128 + number, -number), where
        else:
            assert code == 128 + number, where
        if not early:
            assert "Traceback" not in error and "ignored" not in error, where
        if is_done:
            saved = re.findall(r"saved checkpoint step=(\d+)", out)
            assert kept["steps"] == int(saved[-1]), where
        ends[kept["status"]] = ends.get(kept["status"], 0) + 1
        if folder.exists() and kept["status"] != "finished":
            more = parse(
                ["--data.name=digits", "--resume", *map(str, [*flags, folder])]
            )
            assert runner.run(more).fingerprint == expected["fingerprint"], where
    print(f"{NUM_SIGNALS} signals: {ends}; the slowest end took {slowest:.1f} s")
    assert slowest < max(5, life)  # on a busy machine all takes longer


@pytest.mark.parametrize("num", [2, 100])
def test_a_storm_of_ctrl_c_ends_the_program_at_once(num: int, tmp_path: Path):
    process = start("--run-dir", tmp_path / "run", "--epochs", 100_000)
    assert process.stdout is not None
    promised = process.stdout.readline()
    for _ in range(num):
        process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in error
    saved = re.findall(r"saved checkpoint step=(\d+)", promised + out)
    assert int(saved[-1]) in verified(tmp_path / "run" / "checkpoints")


def test_a_terminal_that_hangs_up_costs_no_step(tmp_path: Path):
    """SIGHUP comes with it, and whatever is written to it from then on fails."""
    child, terminal = pty.fork()
    if child == 0:
        flags = ("--run-dir", tmp_path / "run", "--epochs", 100_000)
        os.execv(sys.executable, command(*flags))
    said = b""
    while b"epoch 2/" not in said:
        said += os.read(terminal, 1000)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    kept = summary_of(tmp_path / "run")
    assert os.waitstatus_to_exitcode(status) == 129, kept
    assert kept["status"] == "interrupted"
    assert kept["steps"] in verified(tmp_path / "run" / "checkpoints")


# Faults of the storage, and odd surroundings


def test_output_that_nobody_takes_stops_nothing(tmp_path: Path):
    """A full disk behind a redirection, and `| head -1`."""
    with open("/dev/full", "w") as full:
        process = start("--run-dir", tmp_path / "full", stdout=full)
        error = process.communicate()[1]
    assert process.returncode == 0 and error.count("\n") == 1
    assert "no more lines can be printed: [Errno 28] No space left" in error
    process = start("--run-dir", tmp_path / "head")
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().startswith("saved checkpoint step=0")
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait() == 0 and error.count("\n") == 1 and "Broken pipe" in error
    process.stderr.close()
    prints = {summary_of(tmp_path / run)["fingerprint"] for run in ("full", "head")}
    assert len(prints) == 1


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator:
    """Run a script of the shell where mounts are its own; needs root's rights."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount, as root has it")
    (tmp_path / "disk").mkdir()

    def run(script: str) -> str:
        done = subprocess.run(
            ["unshare", "-m", "bash", "-euc", script],
            cwd=tmp_path, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    yield run


def program(*flags: object) -> str:
    """The command line, which tells its exit code instead of failing."""
    return f"({shlex.join(command(*flags))} && echo exit 0) || echo exit $?"


def test_a_disk_that_is_full_costs_neither_checkpoint_nor_result(
    mounted, tmp_path: Path
):
    """Three failures in a row end the run; with more room it ends as ever."""
    flags = ("--instruments.budget", 0, "--epochs", 5, "--run-dir")
    assert start(*flags, tmp_path / "undisturbed").communicate()[1] == ""
    told = mounted(f"""
        mount -t tmpfs -o size=1300k none disk  # of 0.4 MB is the first, then 0.8
        {program(*flags, "disk/run")}
        ls disk/run/checkpoints | sed 's/^/found /'
        mount -o remount,size=9M disk
        {program("--resume", *flags, "disk/run")}
        cp -r disk/run kept
    """)
    assert told.count("; training goes on") == 2 and "exit 5" in told
    assert re.search(r"checkpoint of step 40 failed: .*No space.*bytes are free", told)
    assert "The checkpoint of step 10 is safe" in told
    assert re.findall(r"found (step-\d+)", told) == ["step-00000000", "step-00000010"]
    assert "resumed step=10 " in told and "exit 0" in told
    kept, expected = summary_of(tmp_path / "kept"), summary_of(tmp_path / "undisturbed")
    assert kept["fingerprint"] == expected["fingerprint"]
    assert points(tmp_path / "kept") == points(tmp_path / "undisturbed")
    assert verified(tmp_path / "kept" / "checkpoints") >= {40, 50}


def test_a_disk_that_takes_nothing_is_told_before_the_first_step(mounted):
    told = mounted(f"""
        mount -t tmpfs -o size=64k none disk
        {program("--run-dir", "disk/run")}
        mount -t tmpfs -o ro none disk
        {program("--run-dir", "disk")}
        {program("--run-dir", "disk/run")}
    """)
    assert told.count("exit 5") == 3 and "epoch 1" not in told
    assert "No space left on device" in told and "Nothing was trained yet" in told
    assert told.count("Read-only file system") == 2


def test_a_machine_that_is_read_only_but_for_the_run_will_do(mounted, tmp_path: Path):
    """As a container may be. Torch itself needs a place for temporary files."""
    told = mounted(f"""
        mount -t tmpfs none disk
        mount -o remount,bind,ro / || {{ echo cannot; exit; }}
        export HOME=/ TMPDIR=$PWD/disk
        {program("--run-dir", "disk/run")}
        cat disk/run/summary.json
    """)
    if told.startswith("cannot"):
        pytest.skip("this machine's root cannot be made read-only")
    assert "exit 0" in told and '"status": "finished"' in told


def test_surroundings_do_not_matter(tmp_path: Path):
    """No standard input, another language, another umask, a folder that is gone."""
    plain, odd = tmp_path / "plain", tmp_path / "模型 é"
    assert start("--run-dir", plain).communicate()[1] == ""
    gone = tmp_path / "gone"
    gone.mkdir()
    env = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    options = {"cwd": gone, "env": env, "umask": 0o077}
    process = start("--run-dir", odd, preexec_fn=lambda: os.close(0), **options)
    assert process.stdout is not None
    told = process.stdout.readline() + process.stdout.readline()
    os.rmdir(gone)  # not earlier: Intel's library for matrices is found through it
    out, error = process.communicate()
    assert (process.returncode, error) == (0, "")
    out = told + out
    assert r"\u6a21\u578b" in out
    assert summary_of(odd)["fingerprint"] == summary_of(plain)["fingerprint"]
    modes = {stat.S_IMODE(p.stat().st_mode) & 0o077 for p in [odd, *odd.rglob("*")]}
    assert modes == {0}


# Names: each with its exit code; where it is not 0, nothing may have changed

NAMES = {
    "with space": 0,
    "模型 é": 0,
    "../outside": 0,
    "~": 0,
    "$(touch marker)`touch marker`;touch marker": 0,
    "%s{0}%n": 0,
    "-rf": 0,
    "x" * 255: 0,
    "link to folder": 0,
    "a\nb": 2,
    "a\rb": 2,
    "\x1b[2J": 2,
    "\x1b]0;title\x07": 2,
    "\x9b2J": 2,
    "\udcff": 2,
    "x" * 256: 5,
    "file": 5,
    "file/below": 5,
    "link to nothing": 5,
    "link to itself": 5,
    "pipe": 5,
    "/dev/null": 5,
    "": 2,
    ".": 7,
    "..": 7,
}


@pytest.mark.parametrize("name", NAMES)
def test_hostile_names(name: str, tmp_path: Path, monkeypatch, capfd):
    here = tmp_path / "here"
    (here / "folder").mkdir(parents=True)
    (here / "file").write_text("mine")
    (here / "link to folder").symlink_to("folder")
    (here / "link to nothing").symlink_to("nothing")
    (here / "link to itself").symlink_to("link to itself")
    os.mkfifo(here / "pipe")
    monkeypatch.chdir(here)
    before = sorted(tmp_path.rglob("*"))
    flags = ["--data.name", "digits", "--epochs", "1", f"--run-dir={name}"]
    code = terminal.exit_code(lambda: int(runner.run(parse(flags)) is None))
    out, error = capfd.readouterr()
    assert code == NAMES[name], error
    if code == 0:
        assert (here / name / "summary.json").is_file()
        assert not (here / "marker").exists()
    else:
        assert sorted(tmp_path.rglob("*")) == before
        assert error.startswith("error: ") and out == ""
        assert error.rstrip("\n").isprintable() or error.count("\n") > 1
    assert (here / "file").read_text() == "mine"


@pytest.mark.parametrize("kind", ["config.toml", "summary.json", "events", "step"])
def test_nothing_is_written_through_links(kind: str, tmp_path: Path):
    """Whoever puts a link into a run directory gains nothing by it."""
    folder, victim = tmp_path / "run", tmp_path / "victim"
    run = Config(run_dir=folder, epochs=1, data={"name": "digits"})  # pyright: ignore
    runner.run(run)
    (file,) = list(folder.rglob(f"{kind}*"))[-1:]
    shutil.move(file, victim)
    file.symlink_to(victim)
    before = victim.read_bytes()
    more = {"resume": True, "epochs": 2, "allow_changes": True}
    assert runner.run(run.model_copy(update=more)).steps == 20
    assert victim.read_bytes() == before


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    run = Config(run_dir=tmp_path / "run", epochs=1, data={"name": "digits"})  # pyright: ignore
    runner.run(run)
    (tmp_path / "run" / LOCK).unlink()
    (tmp_path / "run" / LOCK).symlink_to(victim)
    before = contents(tmp_path)
    more = run.model_copy(update={"resume": True})
    assert terminal.exit_code(lambda: bool(runner.run(more))) == 5
    assert contents(tmp_path) == before
