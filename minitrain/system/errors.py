"""What can go wrong in a run without being a bug, each with its exit code."""

import difflib
import signal
from collections.abc import Sequence


class MinitrainError(Exception):
    """An error for people: its text says what, why, what is safe, and what to do."""

    exit_code = 1


class SettingsError(MinitrainError):
    """A setting is unknown, of the wrong type, out of range, or impossible here."""

    exit_code = 2


class DataError(MinitrainError):
    """A data set is missing, damaged, or cannot be downloaded."""

    exit_code = 3


class CheckpointError(MinitrainError):
    """A checkpoint is damaged, foreign, or does not fit the run."""

    exit_code = 4


class StorageError(MinitrainError):
    """A file or folder cannot be written."""

    exit_code = 5


class DivergedError(MinitrainError):
    """A training or a walk became infinite or not a number."""

    exit_code = 6


class RunDirectoryError(MinitrainError):
    """The run directory is already in use."""

    exit_code = 7


class GroupError(MinitrainError):
    """A process of the group has died or hangs, so that the others cannot go on."""

    exit_code = 8


class Stopped(BaseException):
    """A signal asked the program to end, which it does with the code 128 + number."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number)
        self.number = number


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return `; did you mean ...?` for a word that is not known, or an empty string.

    It may be misspelled, or short for the last part of dotted words.

    >>> did_you_mean("momentun", ["lr", "momentum"])
    '; did you mean momentum?'
    >>> did_you_mean("lr", ["optimizer.lr"])
    '; did you mean optimizer.lr?'
    """
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.8)
    near = near or [each for each in known if each.endswith(f".{word}")]
    return f"; did you mean {' or '.join(near)}?" if near else ""
