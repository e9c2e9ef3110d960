"""Continuing a run from what was saved of it."""

from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minitrain.runs import checkpoint
from minitrain.runs.checkpoint import Checkpoint
from minitrain.runs.summary import Summary
from minitrain.system.errors import SettingsError
from minitrain.system.terminal import say

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


def find_newest(folder: Path) -> Checkpoint | None:
    """Return the newest intact checkpoint of a run; None where it has none yet.

    Damaged ones that are passed over are told.

    Raises:
        CheckpointError: There are checkpoints, and none of them is intact.
    """
    for stray in folder.rglob(f".*.{'[0-9a-f]' * 16}.part"):
        stray.unlink()  # a file that a kill left unfinished; TensorBoard would read it
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
            "these settings change the result, and cannot change in a resumed run "
            "unless by --allow-changes:\n  " + "\n  ".join(bound)
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
