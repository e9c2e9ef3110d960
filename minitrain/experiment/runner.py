"""One experiment from its settings to its summary."""

import time
from collections.abc import Iterable, Iterator
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
from minitrain.runs import checkpoint, resume
from minitrain.runs.checkpoint import Checkpoint
from minitrain.runs.folder import check_unused, create_folder, occupying
from minitrain.runs.saver import Saver
from minitrain.runs.summary import Summary, finished_summary, recording
from minitrain.system.errors import CheckpointError, Stopped
from minitrain.system.files import replacing
from minitrain.system.signals import Stop
from minitrain.system.terminal import say
from minitrain.training import Step


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
    if not config.resume:
        check_unused(config.run_dir)
    built = build(config)  # before there is a folder: what cannot be built leaves none
    folder = create_folder(config.run_dir, built.name)
    with occupying(folder):
        summary, start = Summary(built.dataset.name, config.seed), None
        if config.resume and (found := resume.find_newest(folder)):
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
    kept = {
        name: getattr(old.instruments, name)
        for name, value in config.instruments
        if value is None
    }
    instruments = config.instruments.model_copy(update=kept)
    built = built.with_config(config.model_copy(update={"instruments": instruments}))
    changed = built.changes_since(found)
    resume.check_changes(changed, config.allow_changes)
    resume.restore(found, built.restore, summary, changed)
    return built


def _train(
    built: Run, folder: Path, start: int | None, summary: Summary, stop: Stop
) -> None:
    """Make the steps of a run after step `start`, None at its beginning, and save."""
    config, name = built.config, built.dataset.name
    settings = to_toml(config)
    with replacing(folder / "config.toml") as file:
        file.write(settings.encode())
    with (
        dashboard(config, folder, start, summary, built.findings) as board,
        tqdm(total=built.num_steps, desc=name, unit="step", disable=None) as bar,
    ):
        journal = Journal(built, summary, board, bar)
        saver = Saver(
            folder,
            built.state,
            summary,
            settings=settings,
            keep=config.checkpoint.keep,
            last_saved=start,
        )
        if start is None:
            board.sync()
            saver.save(must_succeed=True)
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
        journal.draw()


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
