"""What a run tells: its lines on the terminal, its dashboard, and its summary."""

import json
import platform
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minitrain.config import Config, OptimizerSettings, to_toml
from minitrain.errors import Stopped, discard, warn
from minitrain.evaluation import Evaluation
from minitrain.findings import Finding, Findings
from minitrain.storage import replacing
from minitrain.tensorboard import FINDINGS, Board
from minitrain.training import NotFiniteError, Step

CHARTS = {
    "Loss": ["loss/.*"],
    "Gradient": ["grad_norm/.*"],
    "Step audit": ["audit/ratio", "audit/margin", "truth/.*"],
    "Noise": ["noise/.*"],
    "Cost": ["cost/.*"],
}
"""What the dashboard opens on: a chart each, with the tags on it."""


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


def equation(optimizer: OptimizerSettings) -> str:
    """The update rule with the numbers of these settings.

    >>> print(equation(OptimizerSettings(lr=0.1, momentum=0.9, weight_decay=0.01)))
    g <- grad L(theta)
    g <- g + 0.01 theta
    b <- 0.9 b + g                  (b <- g at the first step)
    theta <- theta - lr b           (lr at most 0.1)
    """
    lines, direction = ["g <- grad L(theta)"], "g"
    if optimizer.weight_decay:
        lines.append(f"g <- g + {optimizer.weight_decay:g} theta")
    if optimizer.momentum:
        share = f"{1 - optimizer.dampening:g} g" if optimizer.dampening else "g"
        buffer = f"b <- {optimizer.momentum:g} b + {share}"
        lines.append(f"{buffer:<31} (b <- g at the first step)")
        direction = "b"
    if optimizer.nesterov:
        direction = f"(g + {optimizer.momentum:g} b)"
    update = f"theta <- theta - lr {direction}"
    lines.append(f"{update:<31} (lr at most {optimizer.lr:g})")
    return "\n".join(lines)


@contextmanager
def recording(
    config: Config,
    summary: Summary,
    folder: Path,
    started: float,
    fingerprint: Callable[[], str],
) -> Iterator[None]:
    """Write the settings, and `summary.json` when the run ends, however it does."""
    try:
        with replacing(folder / "config.toml") as file:
            file.write(to_toml(config).encode())
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
                file.write(json.dumps(asdict(summary), indent=2).encode() + b"\n")
        except OSError as error:  # the checkpoints tell as much; how it ended counts
            warn(f"warning: no summary of this end was written: {error}")


@contextmanager
def dashboard(
    config: Config,
    folder: Path,
    start: int | None,
    summary: Summary,
    findings: Findings,
) -> Iterator[Board]:
    """The run's board, with what is known from the start and at the end.

    A run that is continued after the step `start` has all that already.
    """
    with Board(folder, resume_after=-1 if start is None else start) as board:
        if start is None:
            board.layout(CHARTS)
            board.text("run/data", f"Trained on **{config.data.name}**.")
            board.text("run/settings", f"```\n{to_toml(config)}```")
            board.text("run/equation", f"```\n{equation(config.optimizer)}\n```")
            metrics = ["accuracy/test", "loss/test"]
            board.start_hparams(folder.name, _hparams(config), metrics)
        succeeded = False
        try:
            yield board
            succeeded = True
        except NotFiniteError as error:
            tell(summary, findings.note_failure(error.step, f"{error}."))
            raise
        finally:
            board.text(FINDINGS, _markdown(summary))
            board.end_hparams(succeeded)


def _markdown(summary: Summary) -> str:
    """The findings as a list."""
    lines = [
        f"- **{found['kind']}** at step {found['step']}: {found['text']} "
        f"*{found['advice']}*"
        for found in summary.findings
    ]
    return "\n".join(lines) or "Nothing found."


def _hparams(config: Config) -> dict[str, bool | float | str]:
    """The settings that change the result, flat, as TensorBoard takes them."""
    machine = {"device": True, "threads": True, "data": {"root"}}
    ways = dict.fromkeys(("run_dir", "resume", "allow_changes", "debug", "log"), True)
    exclude = {**ways, "checkpoint": True, **machine}
    flat: dict[str, bool | float | str] = {}
    for name, value in config.model_dump(exclude=exclude, exclude_none=True).items():
        items = value.items() if isinstance(value, dict) else [("", value)]
        for key, item in items:
            label = f"{name}.{key}".strip(".")
            flat[label] = item if isinstance(item, bool | int | float) else str(item)
    return flat


def epoch_scalars(test: Evaluation, samples_per_second: float) -> dict[str, float]:
    """The tags and values of an epoch."""
    return {
        "loss/test": test.loss,
        "accuracy/test": test.accuracy,
        "throughput/samples_per_second": samples_per_second,
    }


def shown(step: Step, summary: Summary) -> dict[str, str]:
    """What stands behind the progress bar."""
    shown = {"loss": f"{step.loss:.4f}", "grad_norm": f"{step.grad_norm:.3g}"}
    if summary.test_accuracy is not None:
        shown["accuracy"] = f"{summary.test_accuracy:.2%}"
    return shown


def epoch_line(step: Step, summary: Summary, epochs: int, seconds: float) -> str:
    return (
        f"epoch {step.epoch}/{epochs}  step {step.number}  "
        f"loss/train {step.loss:.4f}  loss/test {summary.test_loss:.4f}  "
        f"accuracy/test {summary.test_accuracy:.2%}  {seconds:.1f} s"
    )


def result(summary: Summary, folder: Path) -> str:
    findings = [f"found {found['kind']}\n" for found in summary.findings]
    return "".join(findings) + (
        f"{summary.dataset}: test accuracy {summary.test_accuracy:.2%}, test loss "
        f"{summary.test_loss:.4f} after {summary.steps} steps\n"
        f"trained for {summary.train_seconds:.1f} s of {summary.total_seconds:.1f} s; "
        f"fingerprint {summary.fingerprint[:16]}\n"
        f"run directory {folder}; to look at it: tensorboard --logdir {folder.parent}"
    )


def tell(summary: Summary, found: Sequence[Finding]) -> None:
    """Take new findings into the summary, and say them."""
    for finding in found:
        summary.findings.append(finding._asdict())
        say(f"finding: {finding}")


def say(line: str) -> None:
    """Print a line above the progress bar; a reader who has left stops no training."""
    try:
        tqdm.write(line)
        sys.stdout.flush()  # into a pipe, too: "saved" is told when it is true
    except OSError as error:
        discard(sys.stdout)
        warn(f"warning: no more lines can be printed: {error}; training goes on")
