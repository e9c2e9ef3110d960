"""The folder of a recorded loop: occupied while it runs, and found again later."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minitrain.experiment.recorder_notes import Notes
from minitrain.experiment.recorder_parts import Parts
from minitrain.experiment.recorder_state import check_loop
from minitrain.runs import resume
from minitrain.runs.checkpoint import Checkpoint
from minitrain.runs.folder import create_folder, occupying
from minitrain.runs.saver import Saver
from minitrain.runs.summary import finished_summary, recording
from minitrain.system.errors import RunDirectoryError
from minitrain.system.terminal import say


@contextmanager
def opened(
    folder: Path,
    parts: Parts,
    notes: Notes,
    settings: Mapping[str, Any],
    *,
    keep: int,
    may_resume: bool,
) -> Iterator[tuple[int, Saver | None]]:
    """Hold the folder of a loop, begun or continued, until the loop has ended.

    Args:
        folder: The run directory.
        parts: What is saved, and restored where the loop goes on.
        notes: Of the loop, whose board and summary are kept in the folder.
        settings: The settings; `num_steps` is one.
        keep: How many of the newest checkpoints are kept.
        may_resume: Whether a loop in the folder may go on.

    Yields:
        The steps that were made, and what saves checkpoints; None where the loop came
        to its end before, and nothing is to be added.

    Raises:
        MinitrainError: The folder or the checkpoint in it does not allow it.
    """
    started, summary = time.perf_counter(), notes.summary
    check_folder(folder, may_resume)
    is_new = not folder.exists()
    create_folder(folder, "")
    with occupying(folder, is_new=is_new):
        check_folder(folder, may_resume)  # now that nobody else writes to it
        resume.clear(folder)
        found = _find_loop(folder)
        start = None if found is None else found.step
        if found is not None:
            parts.resume(found, summary, settings)
            finished = finished_summary(folder)
            num_steps = settings["num_steps"]
            if finished is not None and found.step == finished.steps == num_steps:
                say(f"{folder} is finished: nothing is left to do")
                yield num_steps, None
                return
        saver = Saver(
            folder,
            parts.state,
            summary,
            settings=json.dumps(settings),
            keep=keep,
            last_saved=start,
            as_flags=False,
        )
        with recording(summary, folder, started, parts.fingerprint):
            if start is None:
                saver.save(must_succeed=True)
            with notes.board(folder, start, settings):
                yield start or 0, saver


def check_folder(folder: Path, may_resume: bool) -> None:
    """Make sure that a loop may begin or go on in a folder.

    Raises:
        RunDirectoryError: The folder holds a run that may not go on, or something else.
        StorageError: The folder is a file.
    """
    if not resume.has_checkpoints(folder / "checkpoints"):
        resume.check_free(folder, "give another folder")
    elif not may_resume:
        raise RunDirectoryError(
            f"{folder} holds a run, and resume=False allows none to go on. Nothing was "
            "changed; give another folder"
        )


def _find_loop(folder: Path) -> Checkpoint | None:
    """Return the newest intact checkpoint, checked; None where there is none yet."""
    if not resume.has_checkpoints(folder / "checkpoints"):
        return None
    found = resume.find_newest(folder)
    if found is not None:
        check_loop(found)
    return found
