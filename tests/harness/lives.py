"""Lives of a run: the program again and again, in forks of one process.

torch is imported once. Every line on standard input is the order of one life, in JSON:
the words of the command, where its output goes, and what befalls it. The answer is its
exit code, negative where a signal ended it.
"""

import errno
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import matplotlib.figure
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from minitrain.cli import main
from minitrain.system import files


class Fate:
    """What befalls a life, at which of its events: steps, and calls that touch disk.

    Args:
        kill: The event at which it is killed, by SIGKILL.
        stop: The event at which it is asked to end, by SIGTERM.
        full: How many files cannot be opened to be written, for want of space; the
            first is the second one, after which a run can go on.
    """

    def __init__(self, kill: int = 0, stop: int = 0, full: int = 0) -> None:
        self.kill, self.stop, self.full = kill, stop, full
        self.num_events = self.num_files = 0

    def befall(self) -> None:
        for name in ("fsync", "replace", "rename", "unlink", "mkdir"):
            setattr(os, name, self.counted(getattr(os, name)))
        register_optimizer_step_post_hook(lambda *_: self.pass_event())
        files.open = self.open_file  # pyright: ignore[reportAttributeAccessIssue]

    def pass_event(self) -> None:
        self.num_events += 1
        if self.num_events == self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.num_events == self.stop:
            os.kill(os.getpid(), signal.SIGTERM)

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.pass_event()
            return function(*arguments, **options)

        return call

    def open_file(self, path: Path, mode: str) -> Any:
        if mode != "rb":
            self.num_files += 1
            if 2 < self.num_files <= 2 + self.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return open(path, mode)


def live(words: list[str], output: str, fate: dict[str, int]) -> NoReturn:
    """Be the program once, and end with its exit code."""
    code = 70
    try:
        for number, name in ((1, "out"), (2, "err")):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(Path(output) / name, flags), number)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", closefd=False) for n in (1, 2))
        Fate(**fate).befall()
        code = main(words)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 70
    finally:
        os._exit(code)


def answer_orders() -> None:
    """Read orders until there are no more."""
    torch.set_num_threads(1)
    matplotlib.figure.Figure()  # imported once, too
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            live(**json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    answer_orders()
