"""Run directories: a run takes what is its own, and touches nothing else."""

import itertools
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.files import contents
from harness.runs import command, points

from minitrain.cli.train import train
from minitrain.experiment import Config, journal, runner
from minitrain.experiment.reading import parse, read
from minitrain.runs import checkpoint
from minitrain.runs.board import Board
from minitrain.runs.folder import LOCK
from minitrain.system import terminal
from minitrain.system.errors import RunDirectoryError, SettingsError
from minitrain.system.signals import Stop
from minitrain.training import NotFiniteError

pytestmark = pytest.mark.usefixtures("few_digits")

EVENTS = "events.out.tfevents.1700000000.host.1.0"


def settings(folder: Path, **others) -> Config:
    """Ten steps, with no more than a run needs."""
    few = {"epochs": 1, "data": {"name": "digits"}, "instruments": {"budget": 0.0}}
    return Config(run_dir=folder, **{**few, **others})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    runner.run(settings(folder))
    return folder


# What stands in a folder without checkpoints, each to be left as it is.


def events_of_another_program(folder: Path, finished: Path) -> None:
    (folder / EVENTS).write_bytes(b"mine")


def summary_of_another_program(folder: Path, finished: Path) -> None:
    (folder / "summary.json").write_text('{"steps": 0}')


def lock_of_another_program(folder: Path, finished: Path) -> None:
    (folder / "lock").write_text("mine")


def settings_of_another_program(folder: Path, finished: Path) -> None:
    (folder / "config.toml").write_text("mine = 1")


def folder_of_other_runs(folder: Path, finished: Path) -> None:
    shutil.copytree(finished, folder / "run")
    (folder / "run" / f".summary.json.{'0' * 16}.part").touch()


def checkpoints_that_were_removed(folder: Path, finished: Path) -> None:
    shutil.copytree(finished, folder, dirs_exist_ok=True)
    shutil.rmtree(folder / "checkpoints")


def checkpoints_that_were_removed_after_a_kill(folder: Path, finished: Path) -> None:
    checkpoints_that_were_removed(folder, finished)
    (folder / "summary.json").unlink()


FOREIGN: list[Callable[[Path, Path], None]] = [
    events_of_another_program,
    summary_of_another_program,
    lock_of_another_program,
    settings_of_another_program,
    folder_of_other_runs,
    checkpoints_that_were_removed,
    checkpoints_that_were_removed_after_a_kill,
]


def everything(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


@pytest.mark.parametrize("fill", FOREIGN, ids=lambda fill: fill.__name__)
def test_a_run_never_begins_anew_among_other_files(tmp_path, finished, fill) -> None:
    fill(tmp_path, finished)
    before = everything(tmp_path)
    with pytest.raises(RunDirectoryError, match="holds no checkpoint to continue from"):
        runner.run(settings(tmp_path, resume=True))
    assert everything(tmp_path) == before


def a_kill_at_the_lock(folder: Path) -> None:
    (folder / LOCK).touch()


def a_kill_at_the_settings(folder: Path) -> None:
    (folder / LOCK).touch()
    (folder / f".config.toml.{'0' * 16}.part").touch()


def a_kill_at_the_first_checkpoint(folder: Path) -> None:
    (folder / LOCK).touch()
    (folder / "config.toml").write_text("seed = 0")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / f".step-00000000.{'0' * 16}.part").touch()


def a_failure_of_the_first_checkpoint(folder: Path) -> None:
    def fail(*_: object) -> Path:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", fail)
        assert terminal.exit_code(lambda: bool(runner.run(settings(folder)))) == 5
    assert json.loads((folder / "summary.json").read_text())["steps"] == 0


def a_summary_that_is_damaged(folder: Path) -> None:
    (folder / LOCK).touch()
    (folder / "summary.json").write_text("[" * 100_000)


BEGUN = [
    a_kill_at_the_lock,
    a_kill_at_the_settings,
    a_kill_at_the_first_checkpoint,
    a_failure_of_the_first_checkpoint,
    a_summary_that_is_damaged,
]


@pytest.mark.parametrize("leave", BEGUN, ids=lambda leave: leave.__name__)
def test_a_run_that_ended_before_its_first_checkpoint_begins_anew(
    tmp_path, finished, leave, capsys
) -> None:
    leave(tmp_path)
    (tmp_path / "checkpoints").mkdir(exist_ok=True)
    others = [tmp_path / name for name in ("notes", ".my.part", "checkpoints/my.pt")]
    for path in others:
        path.write_text("mine")
    summary = runner.run(settings(tmp_path, resume=True))
    assert f"{tmp_path} holds no checkpoint yet" in capsys.readouterr().out
    expected = json.loads((finished / "summary.json").read_text())
    assert summary.fingerprint == expected["fingerprint"]
    assert points(tmp_path) == points(finished)
    assert all(path.read_text() == "mine" for path in others)
    assert [path.name for path in tmp_path.rglob("*.part")] == [".my.part"]


def test_files_of_others_are_kept_in_a_resumed_run(tmp_path, finished) -> None:
    """An event file beside its own, and what a run below it is just writing."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    shutil.copytree(finished, tmp_path / "below")
    (tmp_path / "below" / f".summary.json.{'0' * 16}.part").touch()
    below = everything(tmp_path / "below")
    with Board(tmp_path) as board:
        board.log(5, {"mine": 1.0})
    (other,) = set(tmp_path.glob("events.*")) - {
        tmp_path / path.name for path in finished.glob("events.*")
    }
    before = other.read_bytes()
    runner.run(settings(tmp_path, resume=True, allow_changes=True, epochs=2))
    assert other.read_bytes() == before and len(list(tmp_path.glob("events.*"))) == 2
    assert everything(tmp_path / "below") == below
    other.unlink()
    shutil.rmtree(tmp_path / "below")
    found = points(tmp_path)
    assert {step for tag, step in found if tag == "loss/test"} == {10, 20}
    assert ("mine", 5) not in found


def test_of_two_fresh_starts_one_is_refused_whatever_the_timing(
    tmp_path, monkeypatch
) -> None:
    """Both have seen an empty folder; then one runs to its end, or is at work."""
    create, entered = runner.create_folder, itertools.count()

    def late(folder: Path, name: str) -> Path:
        if next(entered) == 0:  # the other one comes here, and is through first
            runner.run(settings(tmp_path / "run"))
            before.update(contents(tmp_path))
        return create(folder, name)

    before: dict[str, bytes] = {}
    monkeypatch.setattr(runner, "create_folder", late)
    with pytest.raises(RunDirectoryError, match="is not empty"):
        runner.run(settings(tmp_path / "run", seed=1))
    assert contents(tmp_path) == before and before


def test_of_two_programs_at_once_one_is_refused(tmp_path) -> None:
    flags = ("--epochs", 1, "--run-dir", tmp_path / "run")
    both = [subprocess.Popen(command(*flags), stderr=subprocess.PIPE) for _ in range(2)]
    errors = [process.communicate()[1].decode() for process in both]
    assert sorted(process.returncode for process in both) == [0, 7], errors
    points(tmp_path / "run")


def test_settings_that_are_gone_are_those_of_the_newest_checkpoint(
    tmp_path, finished
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    kept = read(tmp_path / "config.toml")
    (tmp_path / "config.toml").unlink()
    found = parse(["--resume", "--run-dir", str(tmp_path), "--seed", "3"])
    update = {"run_dir": tmp_path, "resume": True, "seed": 3}
    assert found == kept.model_copy(update=update)


def test_fewer_epochs_than_were_made_are_refused(tmp_path) -> None:
    constant = {"schedule": {"name": "constant"}}
    runner.run(settings(tmp_path, epochs=2, **constant))
    before = contents(tmp_path)
    with pytest.raises(SettingsError, match=r"end after step 10, .* has made 20"):
        runner.run(settings(tmp_path, resume=True, **constant))
    assert contents(tmp_path) == before


def test_new_folders_are_durable(tmp_path, monkeypatch) -> None:
    """After a power cut a folder without its name would hold nothing."""
    synced, fsync = [], os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    runner.run(settings(tmp_path / "a" / "run"))
    for folder in (tmp_path, tmp_path / "a", tmp_path / "a" / "run"):
        assert folder.stat().st_ino in synced, folder


def test_a_step_that_is_not_finite_names_the_checkpoint(tmp_path, capsys) -> None:
    huge = {"optimizer": {"lr": 1e6, "momentum": 0.0}, "epochs": 3}
    with pytest.raises(NotFiniteError) as caught:
        runner.run(settings(tmp_path / "a", **huge))
    step = caught.value.step
    saved = checkpoint.find_all(tmp_path / "a" / "checkpoints")[-1].name
    last = int(saved[5:13])
    assert terminal.exit_code(lambda: train(settings(tmp_path / "b", **huge))) == 6
    said = f"those after step {step - 1}. The checkpoint of step {last} is safe."
    assert said in capsys.readouterr().err


def test_a_folder_that_refuses_is_no_full_disk(tmp_path, monkeypatch, capsys) -> None:
    def refuse(*_: object) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoint, "save", refuse)
    assert terminal.exit_code(lambda: bool(runner.run(settings(tmp_path)))) == 5
    error = capsys.readouterr().err
    assert f"See that {tmp_path} can be written to" in error and "room" not in error


def test_a_signal_during_the_pictures_is_told_that_all_is_saved(
    tmp_path, monkeypatch, capfd
) -> None:
    draw = journal.draw_all

    def interrupted(*args):
        stop._receive(signal.SIGTERM, None)
        return draw(*args)

    stop = Stop()
    monkeypatch.setattr(journal, "draw_all", interrupted)
    assert runner.run(settings(tmp_path), stop=stop).status == "finished"
    assert "SIGTERM: all is saved; finishing\n" in capfd.readouterr().err


def test_a_misspelled_name_begins_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"there is no folder .*misspelled"):
        runner.run(settings(tmp_path / "misspelled", resume=True))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    summary = runner.run(settings(tmp_path / "empty", resume=True))
    assert summary.status == "finished"
