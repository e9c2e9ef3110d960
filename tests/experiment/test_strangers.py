"""Pipes, devices and folders under the names of a run's files: never waited for."""

import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from harness.runs import PANEL

import minitrain
from minitrain.experiment import Config, runner
from minitrain.explain.replay import replay
from minitrain.runs.points import read_curves
from minitrain.system.errors import MinitrainError

pytestmark = [
    pytest.mark.usefixtures("few_digits"),
    pytest.mark.skipif(os.name != "posix", reason="pipes with names are POSIX's"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    runner.run(settings(folder))
    return folder


def settings(folder: Path, **others: Any) -> Config:
    few: dict[str, Any] = {"data": {"name": "digits"}, "instruments": PANEL}
    return Config(run_dir=folder, **{"epochs": 1, **few, **others})


@contextmanager
def not_waiting() -> Iterator[None]:
    """Fail, instead of waiting for somebody who will never write."""

    def fail(*_: object) -> None:
        pytest.fail("waited for ever")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def bind(path: Path) -> None:
    here = os.open(".", os.O_RDONLY)
    os.chdir(path.parent)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)
    os.fchdir(here)
    os.close(here)


KINDS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "folder": lambda path: path.mkdir(),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "socket": bind,
}
PATTERNS = ["summary.json", "config.toml", "events.*", "checkpoints/*", "checkpoints"]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_ignored_or_refused(
    kind: str, pattern: str, finished: Path, tmp_path: Path
):
    """By whatever reads a run; an error is one for people, and the stranger stays."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    strangers = [*folder.glob(pattern)]
    for path in strangers:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        KINDS[kind](path)
    go_on = {"resume": True, "allow_changes": True}
    for act in (
        lambda: minitrain.load(folder),
        lambda: replay(folder, 3, "layers.0.weight", (0, 0)),
        lambda: read_curves(folder),
        lambda: runner.run(settings(folder, epochs=2, **go_on)),
    ):
        with not_waiting(), suppress(MinitrainError, OSError):
            act()
    is_written = pattern in ("summary.json", "config.toml")  # anew, at the end
    left = [not path.is_file() for path in strangers if os.path.lexists(path)]
    assert is_written or left == [True] * len(strangers) or kind == "folder"
