"""What a run tells: its lines on the terminal, and its dashboard."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from minitrain.evaluation import Evaluation
from minitrain.experiment.reading import to_toml
from minitrain.experiment.settings import Config
from minitrain.instruments.findings import Finding, Findings
from minitrain.rule import Rule, equation
from minitrain.runs.board import Board
from minitrain.runs.summary import Summary
from minitrain.runs.tags import FINDINGS
from minitrain.system.errors import Stopped
from minitrain.system.files import replacing
from minitrain.system.terminal import say, warn
from minitrain.training import NotFiniteError, Step

CHARTS = {
    "Loss": ["loss/.*"],
    "Gradient": ["grad_norm/.*"],
    "Step audit": ["audit/ratio", "audit/margin", "truth/.*"],
    "Noise": ["noise/.*"],
    "Cost": ["cost/.*"],
}
"""What the dashboard opens on: a chart each, with the tags on it."""


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
            rule = Rule(clip_norm=config.clip_norm, **config.optimizer.model_dump())
            text = equation(rule, is_largest_lr=config.schedule.name != "constant")
            board.text("run/equation", f"```\n{text}\n```")
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
