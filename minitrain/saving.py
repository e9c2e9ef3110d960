"""Saving a run while it goes on, and continuing it from what was saved."""

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from minitrain import checkpoint
from minitrain.config import Config, changes, from_toml, to_toml
from minitrain.errors import (
    CheckpointError,
    DivergedError,
    SettingsError,
    StorageError,
)
from minitrain.report import Summary, say

MACHINE = ("device:", "threads:", "python:", "torch:")
"""Changes that may show in the last bits alone."""


class Stateful(Protocol):
    """A part of a run that a checkpoint holds."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class Saver:
    """Saves checkpoints of a run, and rides out a disk that is full for a while."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        parts: Mapping[str, Stateful],
        summary: Summary,
        last_saved: int | None = None,
    ) -> None:
        self.config, self.folder, self.summary = config, folder, summary
        self.parts = parts
        self.num_failures, self.last_saved = 0, last_saved

    def save(self, must_succeed: bool) -> None:
        """Save the state after `summary.steps` updates, and say so once it is durable.

        Raises StorageError where it fails for the third time in a row, or fails where
        it must succeed, as at the start and at the end.
        """
        folder, step = self.folder / "checkpoints", self.summary.steps
        state = {name: part.state_dict() for name, part in self.parts.items()}
        if any(not tensor.isfinite().all() for tensor in state["model"].values()):
            raise DivergedError(
                f"the parameters after step {step} are not finite, and were not saved. "
                "Try a smaller --optimizer.lr, or --clip-norm 1"
            )
        state |= {
            "settings": to_toml(self.config),
            "summary": asdict(self.summary),
        }
        try:
            path = checkpoint.save(folder, step, state)
        except OSError as error:
            self.num_failures += 1
            reason = f"checkpoint of step {step} failed: {error}"
            with suppress(OSError):
                reason += f" ({shutil.disk_usage(self.folder).free} bytes are free)"
            if must_succeed or self.num_failures == 3:
                raise StorageError(f"{reason}.\n{self._what_is_safe()}") from None
            say(f"warning: {reason}; training goes on")
            return
        self.num_failures, self.last_saved = 0, step
        say(f"saved checkpoint step={step} path={path}")
        try:
            keep = self.config.checkpoint.keep
            checkpoint.rotate(folder, keep, self.summary.best_step)
        except OSError as error:
            say(f"warning: an old checkpoint was not removed: {error}")

    def _what_is_safe(self) -> str:
        if self.last_saved is None:
            return "Nothing was trained yet. Make room, or give another --run-dir."
        return (
            f"The checkpoint of step {self.last_saved} is safe. Make room, and "
            f"continue with --run-dir {self.folder} --resume"
        )


def restore(
    config: Config,
    folder: Path,
    restore_parts: Callable[[Mapping[str, Any]], None],
    summary: Summary,
) -> tuple[int | None, Config]:
    """Restore the newest intact checkpoint; its step, or None where there is none.

    The settings returned have the cadence of the panel that was measured at the start.

    Raises CheckpointError where all are damaged or the newest does not fit the model,
    SettingsError where settings that change the result differ and this was not allowed.
    """
    for stray in folder.rglob(f".*.{'[0-9a-f]' * 16}.part"):
        stray.unlink()  # a file that a kill left unfinished; TensorBoard would read it
    found, faults = checkpoint.newest(folder / "checkpoints")
    if found is None:
        say(f"{folder} holds no checkpoint yet: the run begins anew")
        return None, config
    for fault in faults:
        say(f"{fault}; using step={found.step}")
    old = from_toml(found.state["settings"])
    free, bound = changes(old, config)
    if bound and not config.allow_changes:
        raise SettingsError(
            "these settings change the result, and cannot change in a resumed run "
            "unless by --allow-changes:\n  " + "\n  ".join(bound)
        )
    before, versions = found.state["summary"], summary.versions
    free += [
        f"{name}: {before['versions'].get(name)} -> {version}"
        for name, version in versions.items()
        if before["versions"].get(name) != version
    ]
    for change in free + bound:
        say(f"changed {change}")
    if any(change.startswith(MACHINE) for change in free):
        say("warning: the last bits may differ from those of the undisturbed run")
    try:
        restore_parts(found.state)
    except (RuntimeError, ValueError):
        raise CheckpointError(
            f"{found.path} does not fit the model that the settings describe"
        ) from None
    for name, value in before.items():
        setattr(summary, name, value)
    summary.versions = versions
    if bound:
        summary.changes.append({"step": found.step, "settings": bound})
    say(f"resumed step={found.step} path={found.path}")
    cadence = {k: v for k, v in config.instruments if v is None}
    cadence = {kind: getattr(old.instruments, kind) for kind in cadence}
    instruments = config.instruments.model_copy(update=cadence)
    return found.step, config.model_copy(update={"instruments": instruments})


def finished_summary(folder: Path) -> Summary | None:
    """The summary of a run that came to its end, though perhaps not to its last one."""
    try:
        summary = Summary(**json.loads((folder / "summary.json").read_text()))
    except (OSError, ValueError, TypeError):  # absent, or not written by this version
        return None
    return summary if summary.status == "finished" else None
