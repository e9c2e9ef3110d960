"""Signals that ask a run to end: it finishes its step, saves, and leaves."""

import os
import signal
import sys
from types import FrameType, TracebackType
from typing import Self

from minitrain.errors import Stopped

SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if hasattr(signal, name)
]


class Stop:
    """Notes a SIGINT, SIGTERM or SIGHUP in place of being killed by it.

    Outside of a `with` block a signal raises `Stopped` at once, wherever the program
    is; inside it is only noted in `received`, for the loop to ask. A second SIGINT
    always leaves at once. A SIGHUP ignored from the start, as by nohup, stays ignored.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._deferred = False

    def install(self) -> Self:
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._receive)
        return self

    def __enter__(self) -> Self:
        self._deferred = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._deferred = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            os._exit(128 + number)
        self.received = signal.Signals(number)
        if not self._deferred:
            raise Stopped(self.received)
        hint = "; Ctrl-C again to leave at once" if number == signal.SIGINT else ""
        line = f"\n{self.received.name}: saving after this step{hint}\n"
        os.write(sys.stderr.fileno(), line.encode())
