"""What became of a run: `summary.json` in its directory."""

import json
import math
import platform
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from minitrain.evaluation import Evaluation
from minitrain.runs.history import History
from minitrain.system.errors import Stopped
from minitrain.system.files import open_regular, replacing
from minitrain.system.terminal import warn
from minitrain.training import Step


def installed_versions() -> dict[str, str]:
    """Return the versions of what a result may depend on, by name."""
    packages = {name: version(name) for name in ("minitrain", "torch", "tensorboard")}
    return {"python": platform.python_version(), **packages}


@dataclass
class Summary:
    """What became of a run; `summary.json` in its directory."""

    dataset: str
    seed: int
    data_sha256: str = ""
    """SHA-256 of the data: see `minitrain.experiment.data`."""
    source_sha256: str = ""
    """SHA-256 of the experiment's file and what it imported; empty if built in."""
    run_id: str = field(default_factory=lambda: secrets.token_hex(8))
    """A name that no other run has; it is kept when the run is resumed."""
    status: str = "running"
    steps: int = 0
    epochs: int = 0
    test_accuracy: float | None = None
    """The share of right class numbers, where the targets are classes."""
    test_loss: float | None = None
    test_metrics: dict[str, float] = field(default_factory=dict)
    """Means over the samples, the accuracy among them."""
    validation_loss: float | None = None
    validation_metrics: dict[str, float] = field(default_factory=dict)
    best_loss: float | None = None
    """The lowest validation loss after any epoch; with step and epoch of it."""
    best_step: int = 0
    best_epoch: int = 0
    is_stopped_early: bool = False
    """Whether the run ended because the validation loss fell no more."""
    average_metrics: dict[str, float] = field(default_factory=dict)
    """Loss and metrics of the averaged weights, with --ema; of validation or test."""
    train_seconds: float = 0.0
    """What the training steps alone took."""
    total_seconds: float = 0.0
    """Since the process started."""
    fingerprint: str = ""
    """SHA-256 over the final parameters and optimizer state."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """The same of every checkpoint ever made, by its step."""
    changes: list[dict[str, Any]] = field(default_factory=list)
    """What altered the result when the run was resumed: step, key, old and new value.
    The steps after that step were made with the new value."""
    findings: list[dict[str, Any]] = field(default_factory=list)
    """What the instruments found: kind, step, text and advice of each."""
    withheld: dict[str, str] = field(default_factory=dict)
    """Instruments that give no reading, and why."""
    versions: dict[str, str] = field(default_factory=installed_versions)

    folder = Path()
    """The run directory. It has no type, and so is not a field: a summary does not say
    where it lies."""

    @property
    def history(self) -> History:
        """Every curve of the run so far, read from its folder."""
        return History.read(self.folder)

    def to_json(self) -> str:
        """Return it as JSON, which has no number that is not finite: null stands there.

        >>> json.loads(Summary("mnist", 0, test_loss=math.nan).to_json())["test_loss"]
        """
        values = _with_null(asdict(self))
        return json.dumps(values, indent=2, allow_nan=False) + "\n"

    def note_step(self, step: Step, seconds: float) -> None:
        """Take in a step, and the seconds that it took."""
        self.steps = step.number
        self.train_seconds += seconds

    def note_test(self, test: Evaluation) -> None:
        """Take in an evaluation on the test set."""
        self.test_loss, self.test_metrics = test.loss, test.metrics
        self.test_accuracy = test.metrics.get("accuracy")

    def note_validation(self, step: Step, valid: Evaluation) -> None:
        """Take in the evaluation on the validation set after an epoch."""
        self.validation_loss, self.validation_metrics = valid.loss, valid.metrics
        best = math.inf if self.best_loss is None else self.best_loss
        if valid.loss < best or math.isnan(best):
            self.best_loss = valid.loss
            self.best_step, self.best_epoch = step.number, step.epoch


def _with_null(value: Any) -> Any:
    """Return plain values, None in the place of numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _with_null(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_null(each) for each in value]
    is_number = not isinstance(value, float) or math.isfinite(value)
    return value if is_number else None


@contextmanager
def recording(
    summary: Summary, folder: Path, started: float, fingerprint: Callable[[], str]
) -> Iterator[None]:
    """Write `summary.json` when the run ends, however it does.

    Args:
        summary: What the run keeps up to date; how it ended is added here.
        folder: The run directory.
        started: When the process started, by `time.perf_counter()`.
        fingerprint: Computes the fingerprint of the final state.
    """
    summary.folder = folder
    try:
        yield
        summary.status = "finished"
    except (KeyboardInterrupt, Stopped):
        summary.status = "interrupted"
        raise
    except BaseException as error:
        summary.status = f"failed: {error!r}"
        raise
    finally:
        summary.fingerprint = fingerprint()
        summary.total_seconds = time.perf_counter() - started
        try:
            with replacing(folder / "summary.json") as file:
                file.write(summary.to_json().encode())
        except OSError as error:  # the checkpoints tell as much; how it ended counts
            warn(f"warning: no summary of this end was written: {error}")


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Return what `summary.json` tells of a run; None where it is absent or not one."""
    try:
        with open_regular(folder / "summary.json") as file:
            told = json.load(file)
    except (OSError, ValueError, RecursionError):
        return None
    is_ours = isinstance(told, dict) and {"run_id", "steps"} <= told.keys()
    return told if is_ours else None


def finished_summary(folder: Path) -> Summary | None:
    """Return the summary of a run that has finished; it may be extended later."""
    try:
        summary = Summary(**(read_summary(folder) or {}))
        summary.folder = folder
    except TypeError:  # absent, or not written by this version
        return None
    return summary if summary.status == "finished" else None
