"""One experiment from its settings to its summary."""

import time
from contextlib import ExitStack, nullcontext
from pathlib import Path

from minitrain.distributed.group import Group, Single, joined
from minitrain.distributed.launch import Launch
from minitrain.experiment import course, source
from minitrain.experiment.blame import blaming
from minitrain.experiment.build import build
from minitrain.experiment.machine import find_device
from minitrain.experiment.parts import SOURCE, Run, with_cadence
from minitrain.experiment.reading import from_toml
from minitrain.experiment.report import result, what_next
from minitrain.experiment.settings import Config
from minitrain.experiment.sharing import RUN_DIR, check_shards, continued
from minitrain.experiment.state import check_state
from minitrain.runs.checkpoint import Checkpoint
from minitrain.runs.folder import check_unused, create_folder, occupying
from minitrain.runs.resume import (
    check_changes,
    check_resumable,
    clear,
    find_newest,
    restore,
)
from minitrain.runs.summary import Summary, finished_summary, recording
from minitrain.system import terminal
from minitrain.system.errors import SettingsError
from minitrain.system.memory import enough_memory
from minitrain.system.signals import Stop
from minitrain.system.terminal import say


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
    launch = Launch.of()
    terminal.is_silent = launch.rank > 0
    check_shards(config, launch)
    device = find_device(config.device, launch.local_rank)
    with joined(launch, device, lambda: stop.received or 0) as group:
        return _run(continued(config, group), started, stop, group)


def _run(config: Config, started: float, stop: Stop, group: Group | Single) -> Summary:
    """Train and test one model, alone or as one process of a group."""
    is_first = group.rank == 0
    check = check_resumable if config.resume else check_unused
    if is_first:
        check(config.run_dir)
    built = build(config, group)  # before there is a folder: what fails leaves none
    built.check_experiment()
    with ExitStack() as stack:
        folder = Path()
        if is_first:
            is_new = config.run_dir is None or not config.run_dir.exists()
            folder = create_folder(config.run_dir, built.name)
            stack.enter_context(occupying(folder, is_new=is_new))
            check(folder)  # now that nobody else writes to it
            clear(folder)
        folder = group.share(folder)
        group.keep(RUN_DIR, str(folder))
        start, summary = None, built.new_summary()
        found = find_newest(folder) if is_first and config.resume else None
        if found := group.share(found):
            built, start = _resume(built, found, folder, summary), found.step
            finished = group.share(finished_summary(folder) if is_first else None)
            is_whole = start == built.num_steps or course.is_over(built.config, summary)
            if finished is not None and start == finished.steps and is_whole:
                say(f"{folder} is finished: nothing is left to do")
                return finished
        stack.enter_context(blaming(built.definition, summary))
        built = with_cadence(built)
        built.check_agreement(start or 0)
        ended = nullcontext()
        if is_first:
            ended = recording(summary, folder, started, built.fingerprint)
        with stop, ended:
            course.make(built, folder, start, summary, stop)
    say(f"{result(summary)}\n\n{what_next(built, summary, folder)}")
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
