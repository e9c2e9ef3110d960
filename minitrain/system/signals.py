"""Signals that ask a run to end: it finishes its step, saves, and leaves."""

import os
import signal
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Self

from minitrain.system.errors import GroupError
from minitrain.system.files import remove_unfinished

SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if hasattr(signal, name)
]


class Stop:
    """Notes a SIGINT, SIGTERM or SIGHUP in place of being killed by it.

    Outside of a `with` block, where there is nothing to save, a signal ends the program
    at once. An exception would not do: in the midst of an import it may be swallowed,
    or leave half a module behind. Inside the block a signal is only noted in
    `received`, for the loop to ask, and a second SIGINT ends the program at once. A
    SIGHUP ignored from the start, as by nohup, stays ignored.
    """

    def __init__(self, is_silent: bool = False) -> None:
        self.received: signal.Signals | None = None
        self.answer = ""
        """What is said to a signal that is only noted, but by one that is silent."""
        self._is_silent = is_silent
        self._deferred = False

    def install(self) -> Self:
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._receive)
        return self

    def __enter__(self) -> Self:
        self._deferred, self.answer = True, "saving after this step"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Where the group is lost, torchrun ends what is about to end by itself.
        self._deferred = isinstance(error, GroupError)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        is_second = self.received is not None and number == signal.SIGINT
        if is_second or not self._deferred:
            remove_unfinished()
            os._exit(128 + number)
        self.received = signal.Signals(number)
        if self._is_silent:
            return
        hint = "; Ctrl-C again to leave at once" if number == signal.SIGINT else ""
        line = f"\n{self.received.name}: {self.answer}{hint}\n"
        with suppress(OSError):  # the terminal may be what has hung up
            os.write(2, line.encode())
