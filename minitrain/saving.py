"""Saving a run while it goes on, and continuing it from what was saved."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch

from minitrain import checkpoint
from minitrain.config import Config, changes, from_toml, to_toml
from minitrain.errors import NotFiniteError, SettingsError, StorageError
from minitrain.report import Summary, say


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
    ) -> None:
        self.config, self.folder, self.summary = config, folder, summary
        self.parts = parts
        self.num_failures = 0

    def save(self, is_last: bool) -> None:
        """Save the state after `summary.steps` updates, and say so once it is durable.

        Raises StorageError where it fails for the third time in a row, or at the end.
        """
        folder, step = self.folder / "checkpoints", self.summary.steps
        state = {name: part.state_dict() for name, part in self.parts.items()}
        if any(not tensor.isfinite().all() for tensor in state["model"].values()):
            raise NotFiniteError(
                f"the parameters after step {step} are not finite, and were not saved. "
                "Try a smaller --optimizer.lr, or --clip-norm 1"
            )
        state |= {
            "settings": to_toml(self.config),
            "summary": asdict(self.summary),
            "random": torch.get_rng_state(),
        }
        try:
            path = checkpoint.save(folder, step, state)
        except OSError as error:
            self.num_failures += 1
            reason = f"checkpoint of step {step} failed: {error}"
            if is_last or self.num_failures == 3:
                raise StorageError(
                    f"{reason}. Earlier checkpoints in {folder} are intact; make room "
                    f"and continue with --run-dir {self.folder} --resume"
                ) from None
            say(f"warning: {reason}; training goes on")
            return
        self.num_failures = 0
        say(f"saved checkpoint step={step} path={path}")
        checkpoint.rotate(folder, self.config.checkpoint.keep, self.summary.best_step)


def restore(
    config: Config, folder: Path, parts: Mapping[str, Stateful], summary: Summary
) -> tuple[int | None, Config]:
    """Restore the newest intact checkpoint; its step, or None where there is none.

    The settings returned have the cadence of the panel that was measured at the start.

    Raises CheckpointError where all are damaged, SettingsError where settings that
    change the result differ and this was not allowed.
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
    for change in free + bound:
        say(f"changed {change}")
    for name, part in parts.items():
        if name in found.state:  # the panel may be new
            part.load_state_dict(found.state[name])
    torch.set_rng_state(found.state["random"])
    for name, value in found.state["summary"].items():
        setattr(summary, name, value)
    say(f"resumed step={found.step} path={found.path}")
    cadence = {k: v for k, v in config.instruments if v is None}
    cadence = {kind: getattr(old.instruments, kind) for kind in cadence}
    instruments = config.instruments.model_copy(update=cadence)
    return found.step, config.model_copy(update={"instruments": instruments})


def finished_summary(folder: Path) -> Summary | None:
    """The summary of a run that came to its end, though perhaps not to its last one."""
    try:
        summary = Summary(**json.loads((folder / "summary.json").read_text()))
    except (OSError, ValueError):
        return None
    return summary if summary.status == "finished" else None
