"""One experiment from its settings to its summary."""

import copy
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from minitrain.experiment import source
from minitrain.experiment.build import build, build_model
from minitrain.experiment.dashboard import dashboard
from minitrain.experiment.journal import Journal
from minitrain.experiment.parts import SOURCE, Run, with_cadence
from minitrain.experiment.reading import definition_in, from_toml, to_toml
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
from minitrain.system.progress import tqdm
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
            built, start = _resume(built, found, folder, summary), found.step
            finished = finished_summary(folder)
            is_whole = start == built.num_steps or is_over(built.config, summary)
            if finished is not None and start == finished.steps and is_whole:
                say(f"{folder} is finished: nothing is left to do")
                return finished
        built = with_cadence(built)
        with stop, recording(summary, folder, started, built.fingerprint):
            _train(built, folder, start, summary, stop)
    say(result(summary, folder))
    return summary


def _resume(built: Run, found: Checkpoint, folder: Path, summary: Summary) -> Run:
    """Continue from a checkpoint; return the run with the cadence measured before.

    Raises:
        CheckpointError: The checkpoint is not one of a run, or does not fit the model.
        SettingsError: Settings that change the result differ, and may not.
    """
    check_state(found, built.definition)
    config, old = built.config, from_toml(found.state["settings"], built.definition)
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
    if any(change.key == SOURCE for change in changed):
        now = built.definition.source
        say(source.difference(source.kept(folder, now), now).rstrip())
    check_changes(changed, config.allow_changes)
    restore(found, built.restore, summary, changed)
    summary.data_sha256 = built.data_sha256
    summary.source_sha256 = built.source_sha256
    return built


def _train(
    built: Run, folder: Path, start: int | None, summary: Summary, stop: Stop
) -> None:
    """Make the steps of a run after step `start`, None at its beginning, and save."""
    config = built.config
    settings = to_toml(config)
    source.keep(built.definition.source, folder)
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
        say(f"run directory {folder}")
    bar = tqdm(total=built.num_steps, desc=built.dataset, unit="step", disable=None)
    with dashboard(built, folder, start, summary) as board, bar, _naming(saver):
        journal = Journal(built, summary, board, bar)
        if not start:
            journal.note_inputs()
        if not is_over(config, summary):
            _make_steps(built, start or 0, journal, saver, stop)
        stop.answer = "all is saved; finishing"
        _conclude(built, folder, journal)


def _make_steps(
    built: Run, start: int, journal: Journal, saver: Saver, stop: Stop
) -> None:
    """Make the steps after step `start`, note them, and save what is due."""
    config, summary = built.config, journal.summary
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
        is_due = step.number % config.checkpoint.every == 0
        if is_due or step.ends_epoch or stop.received:
            journal.board.sync()
            saver.save(must_succeed=is_last or ends_early or bool(stop.received))
        if stop.received:
            raise Stopped(stop.received)
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
        DivergedError: There is no model: what the last update did shows here alone.
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
    step = summary.best_step
    found = checkpoint.find(folder / "checkpoints", step)
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
def _naming(saver: Saver) -> Iterator[None]:
    """Add to an error in the midst of training what of the run is safe."""
    try:
        yield
    except NotFiniteError as error:
        error.add_note(saver.what_is_safe())
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


def load(run_dir: Path | str, *, trust_code: bool = False) -> nn.Module:
    """Return the trained model of a run: the best one, or else the newest.

    The best one has the lowest validation loss; a run without a validation set has
    none. With `--ema` the weights are the averaged ones. The model is ready to predict,
    and takes inputs as in training.

    Args:
        run_dir: The run directory.
        trust_code: Whether the source of the experiment that is kept there may be
            executed, as it must be where it is not the built-in one.

    Raises:
        CheckpointError: The run has no intact checkpoint.
        SettingsError: The run has a source, and it is not trusted.
    """
    folder = Path(run_dir) / "checkpoints"
    found, _ = checkpoint.find_newest(folder)
    if found is None:
        raise CheckpointError(f"{folder} holds no checkpoint")
    summary, text = found.state.get("summary"), found.state.get("settings")
    best = summary.get("best_step") if isinstance(summary, dict) else None
    if best and best != found.step:
        found = checkpoint.find(folder, best) or found
    definition = definition_in(Path(run_dir), str(text), trust_code)
    check_state(found, definition)
    config = from_toml(found.state["settings"], definition)
    model = build_model(config, definition)
    try:
        load_weights(model, found.state.get("average") or found.state["model"])
    except ValueError as error:
        raise CheckpointError(f"{found.path} cannot be loaded: {error}") from None
    return model.eval()
