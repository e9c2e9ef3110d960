"""One experiment from its settings to its summary."""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from minitrain.evaluation import evaluate
from minitrain.experiment.build import Run, build, with_cadence
from minitrain.experiment.builtin import build_model
from minitrain.experiment.dashboard import dashboard
from minitrain.experiment.journal import Journal
from minitrain.experiment.reading import from_toml, to_toml
from minitrain.experiment.report import result
from minitrain.experiment.settings import Config
from minitrain.experiment.state import check_state, load_weights
from minitrain.runs import checkpoint
from minitrain.runs.checkpoint import Checkpoint
from minitrain.runs.folder import check_unused, create_folder, occupying
from minitrain.runs.resume import (
    check_changes,
    check_resumable,
    clear,
    find_newest,
    restore,
)
from minitrain.runs.saver import Saver
from minitrain.runs.summary import Summary, finished_summary, recording
from minitrain.system.errors import (
    CheckpointError,
    DivergedError,
    SettingsError,
    Stopped,
)
from minitrain.system.files import replacing
from minitrain.system.memory import enough_memory
from minitrain.system.signals import Stop
from minitrain.system.terminal import say
from minitrain.training import NotFiniteError, Step


@enough_memory(
    "Lower --data.batch-size or --model.hidden, or take a smaller --model.name."
)
def run(
    config: Config, started: float | None = None, stop: Stop | None = None
) -> Summary:
    """Train and test one model as the settings say.

    The run directory receives `config.toml`, TensorBoard's event file, checkpoints and,
    at the end, however that comes, `summary.json`.

    Args:
        config: The settings.
        started: When the process started, by `time.perf_counter()`; by default now.
        stop: Knows of signals that ask the run to end; by default none does.

    Raises:
        MinitrainError: Settings, data or run directory do not allow it.
        NotFiniteError: Loss or gradient was not finite.
        Stopped: A signal ended the run, after everything was saved.
    """
    started = time.perf_counter() if started is None else started
    stop = Stop() if stop is None else stop
    check = check_resumable if config.resume else check_unused
    check(config.run_dir)
    built = build(config)  # before there is a folder: what cannot be built leaves none
    folder = create_folder(config.run_dir, built.name)
    with occupying(folder):
        check(folder)  # now that nobody else writes to it
        clear(folder)
        start, summary = None, built.new_summary()
        if config.resume and (found := find_newest(folder)):
            built, start = _resume(built, found, summary), found.step
            finished = finished_summary(folder)
            if finished is not None and start == finished.steps == built.num_steps:
                say(f"{folder} is finished: nothing is left to do")
                return finished
        built = with_cadence(built)
        with stop, recording(summary, folder, started, built.fingerprint):
            _train(built, folder, start, summary, stop)
    say(result(summary, folder))
    return summary


def _resume(built: Run, found: Checkpoint, summary: Summary) -> Run:
    """Continue from a checkpoint; return the run with the cadence measured before.

    Raises:
        CheckpointError: The checkpoint is not one of a run, or does not fit the model.
        SettingsError: Settings that change the result differ, and may not.
    """
    check_state(found)
    config, old = built.config, from_toml(found.state["settings"])
    if found.step > built.num_steps:
        raise SettingsError(
            f"epochs = {config.epochs}: they end after step {built.num_steps}, and the "
            f"run has made {found.step}. Nothing was changed"
        )
    kept = {
        name: getattr(old.instruments, name)
        for name, value in config.instruments
        if value is None
    }
    instruments = config.instruments.model_copy(update=kept)
    built = built.with_config(config.model_copy(update={"instruments": instruments}))
    changed = built.changes_since(found)
    check_changes(changed, config.allow_changes)
    restore(found, built.restore, summary, changed)
    summary.data_sha256 = built.data_sha256
    return built


def _train(
    built: Run, folder: Path, start: int | None, summary: Summary, stop: Stop
) -> None:
    """Make the steps of a run after step `start`, None at its beginning, and save."""
    config, name = built.config, built.dataset.name
    settings = to_toml(config)
    with replacing(folder / "config.toml") as file:
        file.write(settings.encode())
    saver = Saver(
        folder,
        built.state,
        summary,
        settings=settings,
        keep=config.checkpoint.keep,
        last_saved=start,
    )
    if start is None:
        saver.save(must_succeed=True)
    with (
        dashboard(config, folder, start, summary, built.findings) as board,
        tqdm(total=built.num_steps, desc=name, unit="step", disable=None) as bar,
        _naming(saver),
    ):
        journal = Journal(built, summary, board, bar)
        if not start:
            journal.note_inputs()
        for step, seconds in _timed(built.train(start or 0), built.model):
            journal.note_step(step, seconds)
            if step.ends_epoch:
                board.flush()
                test = evaluate(built.model, built.test_batches, built.loss_fn)
                journal.note_epoch(step, test)
            is_due = step.number % config.checkpoint.every == 0
            if is_due or step.ends_epoch or stop.received:
                board.sync()
                is_last = step.number == built.num_steps or bool(stop.received)
                saver.save(must_succeed=is_last)
            if stop.received:
                raise Stopped(stop.received)
        stop.answer = "all is saved; finishing"
        _check_end(summary)
        journal.draw()


@contextmanager
def _naming(saver: Saver) -> Iterator[None]:
    """Add to an error in the midst of training what of the run is safe."""
    try:
        yield
    except NotFiniteError as error:
        error.add_note(saver.what_is_safe())
        raise


def _check_end(summary: Summary) -> None:
    """Refuse a model that is none: what the last update did shows in the test alone."""
    if summary.test_loss is None or not math.isfinite(summary.test_loss):
        raise DivergedError(
            f"the test loss after step {summary.steps}, the last, is "
            f"{summary.test_loss}: the training has diverged. Try a smaller "
            "--optimizer.lr, or --clip-norm 1"
        )


def _timed(steps: Iterable[Step], model: nn.Module) -> Iterator[tuple[Step, float]]:
    """Yield every step with the seconds it took, without those of the caller's work."""
    device = next(model.parameters()).device
    start = time.perf_counter()
    for step in steps:
        if step.ends_epoch and device.type != "cpu":
            torch.accelerator.synchronize(device)  # what is queued counts as training
        yield step, time.perf_counter() - start
        start = time.perf_counter()


def load(run_dir: Path | str) -> nn.Module:
    """Return the trained model of a run, from its newest intact checkpoint.

    It is ready to predict, and takes inputs as in training.

    Raises:
        CheckpointError: The run has no intact checkpoint.
    """
    folder = Path(run_dir) / "checkpoints"
    found, _ = checkpoint.find_newest(folder)
    if found is None:
        raise CheckpointError(f"{folder} holds no checkpoint")
    check_state(found)
    model = build_model(from_toml(found.state["settings"]).model)
    try:
        load_weights(model, found.state["model"])
    except ValueError as error:
        raise CheckpointError(f"{found.path} cannot be loaded: {error}") from None
    return model.eval()
