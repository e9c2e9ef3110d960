"""Whose error it is: one in the midst of a run may be that of the experiment's file."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from minitrain.experiment.definition import Definition
from minitrain.experiment.source import what_failed
from minitrain.runs.summary import Summary
from minitrain.system.errors import MinitrainError, SettingsError
from minitrain.training import NotFiniteError

NOBODYS = (
    MinitrainError,
    NotFiniteError,
    MemoryError,
    torch.OutOfMemoryError,
    BrokenPipeError,
)
"""Errors that are reported unchanged, whichever code they pass through."""


@contextmanager
def blaming(definition: Definition, summary: Summary) -> Iterator[None]:
    """Tell an error that passed through the experiment's file as one of that file.

    Any other is a bug of ours, and stays as it is.

    Args:
        definition: The experiment.
        summary: Knows how many steps were made.

    Raises:
        SettingsError: A function of the experiment failed.
    """
    try:
        yield
    except NOBODYS:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        path = definition.path
        names = [frame.name for frame in frames if frame.filename == str(path)]
        if path is None or not names:
            raise
        notes = " ".join(getattr(error, "__notes__", ["Nothing was trained yet."]))
        raise SettingsError(
            f"{names[-1]}(...) of the experiment failed at step {summary.steps + 1}: "
            f"{what_failed(error, path)}. {notes} --debug shows the whole traceback"
        ) from error
