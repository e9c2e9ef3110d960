"""Continuing a run from what was saved of it."""

import os
import re
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minitrain.runs import checkpoint
from minitrain.runs.checkpoint import Checkpoint
from minitrain.runs.folder import LOCK, entries
from minitrain.runs.summary import Summary, read_summary
from minitrain.system.errors import RunDirectoryError, SettingsError
from minitrain.system.files import leftovers
from minitrain.system.terminal import say

_EVENTS = re.compile(r"events\.out\.tfevents\..*\.[0-9a-f]{16}")

MACHINE = {"device", "threads", "python", "torch"}
"""What may show in the last bits of a result, and in nothing else."""


class Change(NamedTuple):
    """What differs between a run and its continuation."""

    key: str
    old: Any
    new: Any
    is_free: bool
    """Whether it leaves the result as it is, but perhaps for the last bits."""

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new}"


def changes(
    old: Mapping[str, Any], new: Mapping[str, Any], free: Container[str]
) -> list[Change]:
    """Compare what a run was made of with what it would be continued with.

    >>> old, new = {"epochs": 2, "lr": 0.1}, {"epochs": 3, "lr": 0.1}
    >>> [str(change) for change in changes(old, new, free={"epochs"})]
    ['epochs: 2 -> 3']

    Args:
        old: Values by key.
        new: The same of the continuation.
        free: The keys whose values leave the result as it is.
    """
    return [
        Change(key, old.get(key), new.get(key), key in free)
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def check_resumable(folder: Path | None) -> None:
    """Make sure that a folder holds a run with checkpoints, or that one may begin.

    A folder that is not there is a name that was misspelled.

    Raises:
        StorageError: It is a file.
        RunDirectoryError: It is not there, or holds something else, or a run without
            its checkpoints.
    """
    if folder is not None and not os.path.exists(folder):
        raise RunDirectoryError(
            f"there is no folder {folder}, so no run to continue. Nothing was done; "
            "give the folder of a run by --run-dir, or begin one without --resume"
        )
    if folder is not None and not has_checkpoints(folder / "checkpoints"):
        check_free(folder, "give the folder of the run by --run-dir, or a new one")


def check_free(folder: Path, remedy: str) -> None:
    """Make sure that a run may begin in a folder without checkpoints.

    It may where the folder is empty, or where a run ended before its first checkpoint:
    its lock is there, and no sign of a step. What is not the run's own is never
    touched.

    Raises:
        StorageError: It is a file.
        RunDirectoryError: It holds something else; the remedy ends the sentence.
    """
    there = entries(folder)
    if any(path.name == LOCK for path in there):
        there = [path for path in there if _tells_of_steps(path)]
    if there:
        names = ", ".join(sorted(path.name for path in there)[:5])
        raise RunDirectoryError(
            f"{folder} holds no checkpoint to continue from, and is not free for a new "
            f"run: it holds {names}. Nothing was changed; {remedy}"
        )


def has_checkpoints(folder: Path) -> bool:
    """Whether there are any, be they damaged."""
    return bool(checkpoint.find_all(folder)) or any(folder.glob("step-*.corrupt"))


def _tells_of_steps(path: Path) -> bool:
    """Whether a file is there only after the first checkpoint of a run."""
    if path.name == "summary.json":
        return (read_summary(path.parent) or {"steps": 0})["steps"] != 0
    return bool(_EVENTS.fullmatch(path.name))


def clear(folder: Path) -> None:
    """Remove the files of a run that a kill left unfinished."""
    for place in (folder, folder / "checkpoints"):
        for part in leftovers(place):  # TensorBoard would read some
            part.unlink()


def find_newest(folder: Path) -> Checkpoint | None:
    """Return the newest intact checkpoint of a run; None where it has none yet.

    Damaged checkpoints that are passed over are reported.

    Raises:
        CheckpointError: There are checkpoints, and none of them is intact.
    """
    found, faults = checkpoint.find_newest(folder / "checkpoints")
    if found is None:
        say(f"{folder} holds no checkpoint yet: the run begins anew")
        return None
    for fault in faults:
        say(f"{fault}; using step={found.step}")
    return found


def check_changes(changed: Sequence[Change], allowed: bool) -> None:
    """Tell what changes in a run that is continued.

    Raises:
        SettingsError: A change alters the result, and this was not allowed.
    """
    bound = [str(change) for change in changed if not change.is_free]
    if bound and not allowed:
        raise SettingsError(
            "these changes alter the result, and a resumed run takes them by "
            "--allow-changes alone:\n  " + "\n  ".join(bound)
        )
    for change in changed:
        say(f"changed {change}")
    if any(change.key in MACHINE for change in changed):
        say("warning: the last bits may differ from those of the undisturbed run")


def restore(
    found: Checkpoint,
    load: Callable[[Checkpoint], None],
    summary: Summary,
    changed: Sequence[Change],
) -> None:
    """Continue from a checkpoint whose state is that of a run.

    Args:
        found: The checkpoint.
        load: Loads its state into the parts of the run, or raises CheckpointError.
        summary: The summary of the run, which continues that of the checkpoint.
        changed: What changed since; the summary keeps what alters the result.

    Raises:
        CheckpointError: The state does not fit the parts.
    """
    load(found)
    versions = summary.versions
    for name, value in found.state["summary"].items():
        setattr(summary, name, value)
    summary.versions = versions
    for change in changed:
        if not change.is_free:
            values = {"key": change.key, "old": change.old, "new": change.new}
            summary.changes.append({"step": found.step, **values})
    say(f"resumed step={found.step} path={found.path}")
