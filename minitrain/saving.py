"""Saving a run while it goes on, and continuing it from what was saved."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from minitrain import checkpoint
from minitrain.config import Config, changes, from_toml, to_toml
from minitrain.errors import NotFiniteError, SettingsError, StorageError
from minitrain.report import Summary, say


class Saver:
    """Saves checkpoints of a run, and rides out a disk that is full for a while."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        summary: Summary,
    ) -> None:
        self.config, self.folder, self.summary = config, folder, summary
        self.model, self.optimizer = model, optimizer
        self.num_failures = 0

    def save(self, is_last: bool) -> None:
        """Save the state after `summary.steps` updates, and say so once it is durable.

        Raises StorageError where it fails for the third time in a row, or at the end.
        """
        folder, step = self.folder / "checkpoints", self.summary.steps
        if any(not p.isfinite().all() for p in self.model.parameters()):
            raise NotFiniteError(
                f"the parameters after step {step} are not finite, and were not saved. "
                "Try a smaller --optimizer.lr, or --clip-norm 1"
            )
        state = {
            "settings": to_toml(self.config),
            "summary": asdict(self.summary),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
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
    config: Config,
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    summary: Summary,
) -> int | None:
    """Restore the newest intact checkpoint; its step, or None where there is none.

    Raises CheckpointError where all are damaged, SettingsError where settings that
    change the result differ and this was not allowed.
    """
    for stray in folder.rglob(f".*.{'[0-9a-f]' * 16}.part"):
        stray.unlink()  # a file that a kill left unfinished; TensorBoard would read it
    found, faults = checkpoint.newest(folder / "checkpoints")
    if found is None:
        say(f"{folder} holds no checkpoint yet: the run begins anew")
        return None
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
    model.load_state_dict(found.state["model"])
    optimizer.load_state_dict(found.state["optimizer"])
    for group in optimizer.param_groups:
        # The schedule sets lr, and after the last step it is that of the last step.
        group.update(config.optimizer.model_dump(exclude={"lr"}))
    torch.set_rng_state(found.state["random"])
    for name, value in found.state["summary"].items():
        setattr(summary, name, value)
    say(f"resumed step={found.step} path={found.path}")
    return found.step


def finished_summary(folder: Path) -> Summary | None:
    """The summary of a run that came to its end, though perhaps not to its last one."""
    try:
        summary = Summary(**json.loads((folder / "summary.json").read_text()))
    except (OSError, ValueError):
        return None
    return summary if summary.status == "finished" else None
