"""What became of a run: `summary.json` in its directory."""

import json
import platform
import secrets
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from minitrain.evaluation import Evaluation
from minitrain.training import Step


@dataclass
class Summary:
    """What became of a run; `summary.json` in its directory."""

    dataset: str
    seed: int
    run_id: str = field(default_factory=lambda: secrets.token_hex(8))
    """Of this run alone, and kept when it is resumed."""
    status: str = "running"
    steps: int = 0
    epochs: int = 0
    test_accuracy: float | None = None
    test_loss: float | None = None
    best_accuracy: float = -1.0
    """The highest test accuracy after any epoch, and the step it was reached at."""
    best_step: int = 0
    train_seconds: float = 0.0
    """Of the training steps alone."""
    total_seconds: float = 0.0
    """Since the process started."""
    fingerprint: str = ""
    """SHA-256 over the final parameters and optimizer state."""
    changes: list[dict[str, Any]] = field(default_factory=list)
    """Settings that changed the result when the run was resumed: after which step."""
    findings: list[dict[str, Any]] = field(default_factory=list)
    """What the instruments found: kind, step, text and advice of each."""
    versions: dict[str, str] = field(
        default_factory=lambda: {
            "python": platform.python_version(),
            **{name: version(name) for name in ("minitrain", "torch", "tensorboard")},
        }
    )

    def note(self, step: Step, test: Evaluation) -> None:
        """Take in the evaluation after a step."""
        self.epochs = step.epoch
        self.test_loss, self.test_accuracy = test.loss, test.accuracy
        if test.accuracy > self.best_accuracy:
            self.best_accuracy, self.best_step = test.accuracy, step.number


def finished_summary(folder: Path) -> Summary | None:
    """The summary of a run that came to its end, though perhaps not to its last one."""
    try:
        summary = Summary(**json.loads((folder / "summary.json").read_text()))
    except (OSError, ValueError, TypeError):  # absent, or not written by this version
        return None
    return summary if summary.status == "finished" else None
