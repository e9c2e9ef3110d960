"""What a run tells on the terminal."""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from minitrain.experiment import catalog
from minitrain.experiment.parts import Run
from minitrain.instruments.findings import Finding
from minitrain.runs.summary import Summary
from minitrain.system.terminal import say
from minitrain.training import Step


def tell(summary: Summary, found: Sequence[Finding]) -> None:
    """Take new findings into the summary, and say them."""
    for finding in found:
        summary.findings.append(finding._asdict())
        say(f"finding: {finding}")


def tell_withheld(summary: Summary, withheld: Mapping[str, str]) -> None:
    """Take instruments without readings into the summary, and say why, once."""
    by_reason: dict[str, list[str]] = {}
    for instrument, reason in withheld.items():
        if instrument not in summary.withheld:
            summary.withheld[instrument] = reason
            by_reason.setdefault(reason, []).append(instrument)
    for reason, instruments in by_reason.items():
        say(f"no readings of {', '.join(instruments)}: {reason}")


def progress(step: Step, summary: Summary) -> dict[str, str]:
    """Return what stands behind the progress bar."""
    shown = {"loss": f"{step.loss:.4f}", "grad_norm": f"{step.grad_norm:.3g}"}
    if summary.test_accuracy is not None:
        shown["accuracy"] = f"{summary.test_accuracy:.2%}"
    return shown


class EpochLine(NamedTuple):
    """What an epoch was."""

    epoch: int
    epochs: int
    step: int
    seconds: float


def epoch_line(made: EpochLine, loss: float, summary: Summary) -> str:
    """Return the line that an epoch ends with.

    Args:
        made: The epoch.
        loss: The mean training loss over its samples.
        summary: Holds the evaluation after it.
    """
    part, found, metrics = "test", summary.test_loss, summary.test_metrics
    if summary.validation_loss is not None:
        part, found = "validation", summary.validation_loss
        metrics = summary.validation_metrics
    told = [f"loss/train {loss:.4g}", f"loss/{part} {found:.4g}"]
    told += [f"{name}/{part} {shown(name, value)}" for name, value in metrics.items()]
    return (
        f"epoch {made.epoch}/{made.epochs}  step {made.step}  {'  '.join(told)}  "
        f"{made.seconds:.1f} s"
    )


def shown(name: str, value: float) -> str:
    """Return a metric as people read it: an accuracy in per cent."""
    return f"{value:.2%}" if "accuracy" in name else f"{value:.4g}"


def result(summary: Summary) -> str:
    """Return the lines that say what came of a run."""
    lines = [f"found {found['kind']}" for found in summary.findings]
    if summary.is_stopped_early:
        lines.append(
            f"stopped early: the lowest validation loss, {summary.best_loss:.4f}, was "
            f"that of epoch {summary.best_epoch}"
        )
    metrics = [f"test {n} {shown(n, x)}" for n, x in summary.test_metrics.items()]
    told = ", ".join([*metrics, f"test loss {summary.test_loss:.4g}"])
    chosen = f", of the best, step {summary.best_step}" if summary.best_step else ""
    lines.append(f"{summary.dataset}: {told} after {summary.steps} steps{chosen}")
    if averaged := summary.average_metrics:
        told = ", ".join(f"{name} {shown(name, x)}" for name, x in averaged.items())
        lines.append(f"the averaged weights, which load returns: {told}")
    lines.append(
        f"trained for {summary.train_seconds:.1f} s of {summary.total_seconds:.1f} s; "
        f"fingerprint {summary.fingerprint[:16]}"
    )
    return "\n".join(lines)


def what_next(run: Run, summary: Summary, folder: Path) -> str:
    """Return the last lines of a run: what to type to look further into it."""
    name, root = shlex.quote(str(folder)), shlex.quote(str(folder.parent))
    keeps_code = run.definition.path is not None
    trust, trusting = " --trust-code" * keeps_code, ", trust_code=True" * keeps_code
    more = "--samples_per_plugin images=100,scalars=10000"
    lines = {"curves": f"tensorboard --logdir {root} {more}"}
    if run.definition.optimizer is None:  # the rule that explain knows is SGD's
        step = summary.steps - summary.steps // (2 * summary.epochs)  # in the last one
        which = f"--step {step} {_weight_to_explain(run.model)}"
        lines["a weight"] = f"minitrain explain {name} {which}{trust}"
    lines["landscape"] = f"minitrain landscape {name}{trust}"
    lines["in Python"] = f"minitrain.load({str(folder)!r}{trusting})"
    told = [f"  {what:9}  {command}" for what, command in lines.items()]
    return "\n".join([f"run directory {folder}; to look further:", *told])


def how_to_go_on(run: Run, folder: Path) -> str:
    """Return the line that a run ends with which a signal has interrupted."""
    path, words = run.definition.path, ["minitrain", "train"]
    if path is not None:
        is_shipped = catalog.shipped().get(path.stem) == path
        words.append(path.stem if is_shipped else os.path.relpath(path))
    words += ["--run-dir", str(folder), "--resume"]
    return f"to go on from there: {shlex.join(words)}"


def _weight_to_explain(model: nn.Module) -> str:
    """Return the flags that name the largest weight of the first layer."""
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    name, parameter = max(trained, key=lambda pair: pair[1].dim())  # the first of them
    place = torch.unravel_index(parameter.detach().abs().argmax(), parameter.shape)
    index = " ".join(str(int(i)) for i in place)
    return f"--parameter {name} --index {index}".removesuffix(" --index ")
