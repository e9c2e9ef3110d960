"""The course of a run: steps, tests, checkpoints, and the way it ends."""

import copy
import math
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch

from minitrain.experiment import source
from minitrain.experiment.dashboard import dashboard
from minitrain.experiment.journal import Journal
from minitrain.experiment.nobody import Nobody
from minitrain.experiment.parts import Run
from minitrain.experiment.reading import to_toml
from minitrain.experiment.report import how_to_go_on
from minitrain.experiment.settings import Config
from minitrain.runs import checkpoint
from minitrain.runs.saver import Saver
from minitrain.runs.summary import Summary
from minitrain.system.errors import DivergedError, GroupError, Stopped
from minitrain.system.files import replacing
from minitrain.system.progress import tqdm
from minitrain.system.signals import Stop
from minitrain.system.terminal import say
from minitrain.training import Step


def make(
    built: Run, folder: Path, start: int | None, summary: Summary, stop: Stop
) -> None:
    """Make the steps of a run after step `start`, None at its beginning, and save."""
    config, is_first = built.config, built.group.rank == 0
    saver = shown = cast(Any, Nobody())
    if is_first:
        saver = _begin(built, folder, start, summary)
        shown = dashboard(built, folder, start, summary)
    bar = tqdm(
        total=built.num_steps,
        desc=built.dataset,
        unit="step",
        disable=None if is_first else True,  # None: only on a terminal
    )
    with shown as board, bar, _naming(saver, folder):
        journal = Journal(built, summary, board, bar)
        if not start and is_first:
            journal.note_inputs()
        if not is_over(config, summary):
            with journal.drawing_a_failure():
                _make_steps(built, folder, start or 0, journal, saver)
        stop.answer = "all is saved; finishing"
        _conclude(built, folder, journal)


def _begin(built: Run, folder: Path, start: int | None, summary: Summary) -> Saver:
    """Keep settings and source in the run directory; return who saves the rest."""
    settings = to_toml(built.config)
    source.keep(built.definition.source, folder)
    with replacing(folder / "config.toml") as file:
        file.write(settings.encode())
    saver = Saver(
        folder,
        built.state,
        summary,
        settings=settings,
        keep=built.config.checkpoint.keep,
        last_saved=start,
    )
    if start is None:
        saver.save(must_succeed=True)
        say(f"run directory {folder}")
    return saver


def _make_steps(
    built: Run, folder: Path, start: int, journal: Journal, saver: Any
) -> None:
    """Make the steps after step `start`, note them, and save what is due."""
    config, summary, group = built.config, journal.summary, built.group
    for step, seconds in _timed(built.train(start), built.device):
        if built.average is not None:
            built.average.update()
        journal.note_step(step, seconds)
        if step.ends_epoch:
            journal.board.flush()
            journal.note_epoch(step)
        is_last = step.number == built.num_steps
        ends_early = step.ends_epoch and not is_last and is_over(config, summary)
        summary.is_stopped_early = ends_early
        if step.ends_epoch and not (is_last or ends_early):
            journal.draw_epoch(step)  # at the end of the run they are drawn anyway
        is_due, received = step.number % config.checkpoint.every == 0, group.received
        if is_due or step.ends_epoch or received:
            built.check_agreement(step.number)
            journal.board.sync()
            saver.save(must_succeed=is_last or ends_early or bool(received))
        if received:
            say(how_to_go_on(built, folder))
            raise Stopped(signal.Signals(received))
        if ends_early:
            return


def is_over(config: Config, summary: Summary) -> bool:
    """Return whether the validation loss has not fallen for as long as it may."""
    patience = config.stop.patience
    has_waited = summary.epochs - summary.best_epoch
    return patience > 0 and summary.best_loss is not None and has_waited >= patience


def _conclude(built: Run, folder: Path, journal: Journal) -> None:
    """Test what a validation set has chosen, and show the pictures.

    Raises:
        DivergedError: The final loss is not finite: what the last update did shows only
            here.
    """
    summary = journal.summary
    if built.valid_batches is None:
        _check_loss("test", summary.test_loss, summary)
        journal.conclude()
        return
    _check_loss("validation", summary.validation_loss, summary)
    with _best_weights(built, folder, summary):
        journal.evaluate(summary.steps, "test", built.test_batches)
        journal.conclude()


@contextmanager
def _best_weights(built: Run, folder: Path, summary: Summary) -> Iterator[None]:
    """Give the model the weights with the lowest validation loss, and its own back."""
    step, group = summary.best_step, built.group
    found = checkpoint.find(folder / "checkpoints", step) if group.rank == 0 else None
    found = group.share(found)
    if step == summary.steps or found is None:
        if found is None:
            say(f"warning: the checkpoint of step {step}, the best, is gone")
        yield
        return
    own = {name: x.clone() for name, x in built.model.state_dict().items()}
    average = built.average and copy.deepcopy(built.average.state_dict())
    try:
        built.model.load_state_dict(found.state["model"])
        if built.average is not None:
            built.average.load_state_dict(found.state["average"])
        yield
    finally:
        built.model.load_state_dict(own)
        if built.average is not None and average is not None:
            built.average.load_state_dict(average)


@contextmanager
def _naming(saver: Any, folder: Path) -> Iterator[None]:
    """Add to an error in the midst of training what of the run is safe."""
    try:
        yield
    except GroupError as error:
        raise GroupError(
            f"{error}. Every checkpoint that was reported as saved is safe: continue "
            f"with --run-dir {folder} --resume, on any number of processes that "
            "divides --shards, or have torchrun do it by itself, with --max-restarts 3"
        ) from None
    except Exception as error:
        error.add_note(saver.what_is_safe() or "")
        raise


def _check_loss(part: str, loss: float | None, summary: Summary) -> None:
    if loss is None or not math.isfinite(loss):
        raise DivergedError(
            f"the {part} loss after step {summary.steps}, the last, is {loss}: the "
            "training has diverged. Try a smaller --optimizer.lr, or --clip-norm 1"
        )


def _timed(steps: Iterable[Step], device: torch.device) -> Iterator[tuple[Step, float]]:
    """Yield every step with the seconds it took, without those of the caller's work."""
    start = time.perf_counter()
    for step in steps:
        if step.ends_epoch and device.type != "cpu":
            torch.accelerator.synchronize(device)  # what is queued counts as training
        yield step, time.perf_counter() - start
        start = time.perf_counter()
