"""The faults that `scripts/prove.py --mutants` plants, each of which tests must catch.

A fault is a function that takes a module and spoils it, as soon as it is imported in a
test or in a program that a test starts; `sitecustomize` beside this file sees to that.
This file imports nothing that takes long: every program imports it.
"""

import math
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

VARIABLE = "MINITRAIN_FAULT"
"""The environment variable that names the fault to plant."""

SAVING = "tests/system/test_files.py tests/runs/test_checkpoint.py"
RESUMING = "tests/experiment/test_resume.py"
DIRECTORY = "tests/experiment/test_directory.py"
SHARING = "tests/test_shards.py tests/experiment/test_processes.py"
LIMITS = "tests/experiment/test_limits.py"


class Fault(NamedTuple):
    """One fault: the module that it spoils, how, and the tests that must catch it."""

    module: str
    plant: Callable[[Any], None]
    tests: str


FAULTS: dict[str, Fault] = {}


def fault(module: str, tests: str) -> Callable[[Callable[[Any], None]], None]:
    """Enter a function into the table, under its name in words."""

    def enter(plant: Callable[[Any], None]) -> None:
        FAULTS[plant.__name__.replace("_", " ")] = Fault(module, plant, tests)

    return enter


def replace(owner: Any, **others: Any) -> None:
    """Replace attributes, each of which must be there, or the fault is out of date."""
    for name, other in others.items():
        getattr(owner, name)
        setattr(owner, name, other)


class Double:
    """A module in all but some of its functions."""

    def __init__(self, module: Any, **others: Any) -> None:
        self._module = module
        replace(self, **others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


# Files


@fault("minitrain.system.files", SAVING)
def no_fsync_of_the_file(files: Any) -> None:
    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            os.fsync(descriptor)

    replace(files, os=Double(os, fsync=fsync))


@fault("minitrain.system.files", SAVING)
def no_fsync_of_the_folder(files: Any) -> None:
    replace(files, sync_folder=lambda folder: None)


@fault("minitrain.system.files", SAVING)
def fsync_after_the_rename(files: Any) -> None:
    waiting: list[int] = []

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            os.fsync(descriptor)
        else:
            waiting.append(os.dup(descriptor))

    def rename(source: Path, target: Path) -> None:
        os.replace(source, target)
        os.fsync(waiting[-1])
        os.close(waiting.pop())

    replace(files, os=Double(os, fsync=fsync, replace=rename))


@fault("minitrain.system.files", SAVING)
def written_in_place(files: Any) -> None:
    def in_place(temporary: Path, mode: str) -> Any:
        name = temporary.name.removeprefix(".").rsplit(".", 2)[0]
        return open(temporary.with_name(name), "wb")

    files.open = in_place  # in front of Python's own
    replace(files, os=Double(os, replace=lambda source, target: None))


# Checkpoints


@fault("minitrain.runs.checkpoint", SAVING)
def hash_not_compared(checkpoint: Any) -> None:
    class Agreeable(str):
        def __ne__(self, other: object) -> bool:
            return False

        __hash__ = str.__hash__

    def file_digest(file: Any, name: str) -> Any:
        digest = hashlib.file_digest(file, name)
        return Double(digest, hexdigest=lambda: Agreeable(digest.hexdigest()))

    hashlib = checkpoint.hashlib
    replace(checkpoint, hashlib=Double(hashlib, file_digest=file_digest))


@fault("minitrain.runs.checkpoint", SAVING)
def newest_by_time_and_not_by_step(checkpoint: Any) -> None:
    find_all = checkpoint.find_all
    replace(
        checkpoint,
        find_all=lambda folder: sorted(find_all(folder), key=os.path.getmtime),
    )


@fault("minitrain.runs.checkpoint", SAVING)
def checkpoints_unpickled_without_restriction(checkpoint: Any) -> None:
    torch = checkpoint.torch

    def load(*arguments: Any, **options: Any) -> Any:
        return torch.load(*arguments, **options | {"weights_only": False})

    replace(checkpoint, torch=Double(torch, load=load))


@fault("minitrain.runs.checkpoint", RESUMING)
def back_to_step_0_where_all_checkpoints_are_damaged(checkpoint: Any) -> None:
    find_newest = checkpoint.find_newest

    def forgiving(folder: Path) -> Any:
        try:
            return find_newest(folder)
        except checkpoint.CheckpointError:
            return None, []

    replace(checkpoint, find_newest=forgiving)


@fault("minitrain.runs.saver", RESUMING)
def old_checkpoints_removed_before_the_new_one_is_durable(saver: Any) -> None:
    save = saver.Saver.save

    def rotate_and_save(self: Any, must_succeed: bool) -> None:
        folder, summary = self.folder / "checkpoints", self.summary
        saver.checkpoint.rotate(folder, 1, None, summary.steps)
        save(self, must_succeed)

    replace(saver.Saver, save=rotate_and_save)


# What is restored


@fault("minitrain.randomness", RESUMING)
def random_state_not_restored(randomness: Any) -> None:
    replace(randomness.RandomStates, load_state_dict=lambda self, state: None)


@fault("minitrain.experiment.parts", RESUMING)
def place_in_the_data_not_restored(build: Any) -> None:
    train = build.Run.train
    replace(build.Run, train=lambda self, start=0: train(self))


@fault("minitrain.experiment.parts", RESUMING)
def momentum_not_restored(build: Any) -> None:
    restore = build.Run.restore

    def restore_others(self: Any, found: Any) -> None:
        state = found.state
        others = {name: state[name] for name in state if name != "optimizer"}
        restore(self, found._replace(state=others))

    replace(build.Run, restore=restore_others)


@fault("minitrain.runs.points", RESUMING)
def points_after_the_checkpoint_kept(points: Any) -> None:
    is_kept = points._is_kept
    replace(points, _is_kept=lambda event, step: is_kept(event, 10**9))


# The run


@fault("minitrain.training", RESUMING)
def check_for_nan_after_the_update(training: Any) -> None:
    train = training.train

    def train_and_check(model: Any, *arguments: Any, **options: Any) -> Iterator[Any]:
        for step in train(model, *arguments, **options):
            if not (math.isfinite(step.loss) and math.isfinite(step.grad_norm)):
                name = training._first_not_finite(dict(model.named_parameters()))
                raise training.NotFiniteError(
                    step.number, step.loss, step.grad_norm, name, step.lr
                )
            yield step

    replace(training, train=train_and_check)
    replace(training, math=Double(math, isfinite=lambda number: True))


@fault("minitrain.runs.folder", RESUMING)
def no_lock_on_the_run_directory(folder: Any) -> None:
    replace(folder, occupying=lambda path: nullcontext())


# Around the core: what is the run's own, and what changes it


@fault("minitrain.runs.resume", DIRECTORY)
def a_run_resumed_in_any_folder(resume: Any) -> None:
    replace(resume, check_resumable=lambda folder: None)


@fault("minitrain.runs.points", DIRECTORY)
def event_files_of_others_taken_for_the_runs_own(points: Any) -> None:
    scan_all = points._scan_all
    replace(points, _scan_all=lambda folder, owner="": scan_all(folder))


@fault("minitrain.experiment.reading", RESUMING)
def epochs_free_under_every_schedule(reading: Any) -> None:
    free_keys = reading.free_keys
    replace(reading, free_keys=lambda *settings: free_keys(*settings) | {"epochs"})


@fault("minitrain.runs.resume", RESUMING)
def other_data_taken_in_silence(resume: Any) -> None:
    changes = resume.changes

    def changes_of_settings(*arguments: Any) -> list[Any]:
        return [each for each in changes(*arguments) if each.key != "data.sha256"]

    replace(resume, changes=changes_of_settings)


@fault("minitrain.datasets.cache", "tests/datasets/test_cache.py")
def a_cache_believed_by_its_own_hash(cache: Any) -> None:
    read_or_make = cache.read_or_make
    replace(
        cache,
        read_or_make=lambda path, make, _: read_or_make(path, make, lambda *_: True),
    )


@fault("minitrain.runs.folder", DIRECTORY)
def emptiness_decided_before_the_lock(folder: Any) -> None:
    check_unused, seen = folder.check_unused, set()

    def check_once(path: Any) -> None:
        if path not in seen:
            seen.add(path)
            check_unused(path)

    replace(folder, check_unused=check_once)


@fault("minitrain.runs.checkpoint", SAVING)
def another_format_taken_for_damage(checkpoint: Any) -> None:
    check_format = checkpoint._check_format

    def blame(path: Path, state: dict[str, Any]) -> None:
        try:
            check_format(path, state)
        except checkpoint.CheckpointError as error:
            raise checkpoint.DamagedError(str(error)) from None

    replace(checkpoint, _check_format=blame)


@fault("minitrain.runs.checkpoint", SAVING)
def rotation_that_counts_what_it_cannot_read(checkpoint: Any) -> None:
    replace(checkpoint, _can_be_read=lambda path: True)


@fault("minitrain.runs.events", "tests/runs/test_events.py")
def points_given_up_when_the_disk_was_full_once(events: Any) -> None:
    flush = events.EventFile.flush

    def flush_until_it_fails(self: Any) -> None:
        if not self._is_failing:
            flush(self)

    replace(events.EventFile, flush=flush_until_it_fails)


@fault("minitrain.experiment.course", LIMITS)
def divergence_in_the_last_update_called_finished(course: Any) -> None:
    replace(course, _check_loss=lambda *_: None)


@fault("minitrain.experiment.state", "tests/experiment/test_state.py")
def the_content_of_checkpoints_not_checked(state: Any) -> None:
    replace(state, check_state=lambda found, definition: None)


# Processes


@fault("minitrain.shards", SHARING)
def the_last_batch_padded(shards: Any) -> None:
    def slices(self: Any, bounds: Any) -> Iterator[tuple[int, int]]:
        for start, end in bounds:
            size = -(-(end - start) // self.num)
            for shard in self.own:  # the last samples once more, where some are missing
                first = min(start + shard * size, end - size)
                yield first, first + size

    replace(shards.Shards, _slices=slices)


@fault("minitrain.means", SHARING)
def a_mean_without_weights(means: Any) -> None:
    join = means.join

    def join_halves(left: Any, right: Any) -> Any:
        num_samples = left.num_samples + right.num_samples
        if not left.num_samples or not right.num_samples:
            return join(left, right)
        same = (each._replace(num_samples=1) for each in (left, right))
        return join(*same)._replace(num_samples=num_samples)

    replace(means, join=join_halves)


@fault("minitrain.shards", SHARING)
def the_same_dropout_mask_on_all_ranks(shards: Any) -> None:
    seed_by = shards.seed_by

    def seed_step(text: str, device: Any) -> None:
        seed_by(text.partition(" of ")[2], device)

    replace(shards, seed_by=seed_step)


@fault("minitrain.means", SHARING)
def a_sum_in_the_order_of_ranks(means: Any) -> None:
    def root(leaves: Any, num: int) -> Any:
        mean = next(leaves)
        for _ in range(num - 1):
            mean = means.join(mean, next(leaves))
        return mean

    replace(means, root=root)


@fault("minitrain.shards", SHARING)
def an_audit_with_the_loss_of_its_own_samples(shards: Any) -> None:
    loss, num_samples = shards.Shards.loss, shards.size_of

    def own_loss(self: Any, window: Any, model: Any, loss_of: Any) -> Any:
        own = [batch for batch in window.batches if num_samples(batch)]
        if self.peers.world_size == 1 or not own:
            return loss(self, window, model, loss_of)
        return loss_of(window._replace(batches=own))

    replace(shards.Shards, loss=own_loss)


@fault("minitrain.means", SHARING)
def batch_norm_of_the_first_shard_alone(means: Any) -> None:
    join = means.join

    def join_all_else(left: Any, right: Any) -> Any:
        kept = [buffer.clone() for buffer in left.buffers]
        joined = join(left, right)
        return joined._replace(buffers=kept if left.num_samples else joined.buffers)

    replace(means, join=join_all_else)
