"""Saving a run while it goes on."""

import errno
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from minitrain.fingerprint import fingerprint
from minitrain.runs import checkpoint
from minitrain.runs.summary import Summary
from minitrain.system.errors import DivergedError, StorageError
from minitrain.system.terminal import say


class Stateful(Protocol):
    """A part of a run that a checkpoint holds."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class Saver:
    """Saves checkpoints of a run, and rides out a disk that is full for a while.

    Args:
        folder: The run directory.
        parts: What a checkpoint holds, by name.
        summary: The summary of the run; it is saved too.
        settings: The settings, as TOML.
        keep: How many of the newest checkpoints are kept.
        last_saved: The step of the checkpoint that the run is continued from.
        as_flags: Whether advice names flags of the runner, and not arguments.
    """

    def __init__(
        self,
        folder: Path,
        parts: Mapping[str, Stateful],
        summary: Summary,
        *,
        settings: str,
        keep: int,
        last_saved: int | None = None,
        as_flags: bool = True,
    ) -> None:
        self.folder, self.parts, self.summary = folder, parts, summary
        self.settings, self.keep = settings, keep
        self.num_failures, self.last_saved = 0, last_saved
        self.as_flags = as_flags
        model = parts["model"]
        own = dict(model.named_parameters()) if isinstance(model, nn.Module) else {}
        self._infinite = infinite_in(model.state_dict()) - own.keys()
        """Buffers that are so from the start, such as causal masks."""

    def save(self, must_succeed: bool) -> None:
        """Save the state after `summary.steps` updates, and say so once it is durable.

        Args:
            must_succeed: Whether a failure counts at once, as at the start and the end.

        Raises:
            DivergedError: The parameters are not finite.
            StorageError: It fails where it must succeed, or the third time in a row.
        """
        folder, step = self.folder / "checkpoints", self.summary.steps
        state = {name: part.state_dict() for name, part in self.parts.items()}
        if infinite_in(state["model"]) - self._infinite:
            smaller = "--optimizer.lr, or --clip-norm 1"
            if not self.as_flags:
                smaller = "learning rate, or clip the gradient to the norm 1"
            raise DivergedError(
                f"the parameters after step {step} are not finite, and were not saved. "
                f"Try a smaller {smaller}"
            )
        own = fingerprint(state["model"], state["optimizer"])
        self.summary.fingerprints[str(step)] = own
        state |= {
            "settings": self.settings,
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
                raise StorageError(f"{reason}.\n{self._what_next(error)}") from None
            say(f"warning: {reason}; training goes on")
            return
        self.num_failures, self.last_saved = 0, step
        say(f"saved checkpoint step={step} ({checkpoint.short_name(path)})")
        try:
            best = self.summary.best_step or None
            checkpoint.rotate(folder, self.keep, best, step)
        except OSError as error:
            say(f"warning: an old checkpoint was not removed: {error}")

    def what_is_safe(self) -> str:
        """Return a sentence on what of the run is on disk."""
        if self.last_saved is None:
            return "Nothing was trained yet."
        return f"The checkpoint of step {self.last_saved} is safe."

    def _what_next(self, error: OSError) -> str:
        is_full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
        remedy = "Make room" if is_full else f"See that {self.folder} can be written to"
        if not self.as_flags:
            return f"{self.what_is_safe()} {remedy}, and start the program again."
        if self.last_saved is None:
            return f"{self.what_is_safe()} {remedy}, or give another --run-dir."
        again = f"continue with --run-dir {self.folder} --resume"
        return f"{self.what_is_safe()} {remedy}, and {again}"


def infinite_in(state: Mapping[str, Any]) -> set[str]:
    """Return the names of what has an infinite number or NaN, in a model's state."""
    tensors = {name: x for name, x in state.items() if isinstance(x, Tensor)}
    return {name for name, x in tensors.items() if not x.isfinite().all()}
