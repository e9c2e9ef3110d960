"""What a run tells on the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path

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
    for instrument, reason in withheld.items():
        if instrument not in summary.withheld:
            summary.withheld[instrument] = reason
            say(f"no readings of {instrument}: {reason}")


def progress(step: Step, summary: Summary) -> dict[str, str]:
    """Return what stands behind the progress bar."""
    shown = {"loss": f"{step.loss:.4f}", "grad_norm": f"{step.grad_norm:.3g}"}
    if summary.test_accuracy is not None:
        shown["accuracy"] = f"{summary.test_accuracy:.2%}"
    return shown


def epoch_line(step: Step, summary: Summary, epochs: int, seconds: float) -> str:
    """Return the line that an epoch ends with."""
    return (
        f"epoch {step.epoch}/{epochs}  step {step.number}  "
        f"loss/train {step.loss:.4f}  loss/test {summary.test_loss:.4f}  "
        f"accuracy/test {summary.test_accuracy:.2%}  {seconds:.1f} s"
    )


def result(summary: Summary, folder: Path) -> str:
    """Return the lines that a run ends with."""
    findings = [f"found {found['kind']}\n" for found in summary.findings]
    return "".join(findings) + (
        f"{summary.dataset}: test accuracy {summary.test_accuracy:.2%}, test loss "
        f"{summary.test_loss:.4f} after {summary.steps} steps\n"
        f"trained for {summary.train_seconds:.1f} s of {summary.total_seconds:.1f} s; "
        f"fingerprint {summary.fingerprint[:16]}\n"
        f"run directory {folder}; to look at it: tensorboard --logdir {folder.parent}"
    )
