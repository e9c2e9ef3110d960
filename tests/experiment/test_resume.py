"""Runs stopped, killed or spoilt at any instant: they end as if nothing had been."""

import errno
import functools
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from harness.files import contents
from harness.runs import PANEL, SCRIPT, points

from minitrain import schedules
from minitrain.cli.train import train as train_command
from minitrain.datasets import digits
from minitrain.datasets.dataset import Dataset
from minitrain.experiment import Config, builtin, journal, parts, runner
from minitrain.experiment.reading import flatten, free_keys, from_toml, parse
from minitrain.experiment.settings import Settings, keys
from minitrain.fingerprint import fingerprint
from minitrain.runs import checkpoint, events
from minitrain.runs.resume import changes
from minitrain.runs.summary import Summary
from minitrain.system import terminal
from minitrain.system.errors import (
    CheckpointError,
    RunDirectoryError,
    SettingsError,
    Stopped,
)
from minitrain.system.signals import Stop

pytestmark = pytest.mark.usefixtures("few_digits")
NUM_KILLS = int(os.environ.get("MINITRAIN_NUM_KILLS", 8))


class Crash(Exception):
    """Ends a run at once, as a bug does: nothing more is saved."""


def settings(folder: Path, **others) -> Config:
    """Two epochs of ten steps, with a checkpoint after every third and every epoch."""
    few = {"epochs": 2, "data": {"name": "digits"}, "checkpoint": {"every": 3}}
    few["instruments"] = PANEL
    few["model"] = {"dropout": 0.3}
    return Config(run_dir=folder, **{**few, **others})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple]:
    """What a run gives that nothing happens to: fingerprint, accuracy, and curves."""

    @functools.cache
    def outcome(model: str = "mlp", every: int = 10) -> tuple:
        folder = tmp_path_factory.mktemp("undisturbed")
        model_settings = {"name": model, "dropout": 0.3}
        run = settings(folder, model=model_settings, log={"every": every})
        return told(folder, runner.run(run))

    return outcome


def told(folder: Path, summary: Summary) -> tuple:
    return summary.fingerprint, summary.test_accuracy, points(folder)


@contextmanager
def spying(at: int, act: Callable[[], None], on: str = "train") -> Iterator[None]:
    """Act once step `at` is made, or once its epoch's evaluation is (`epoch_line`)."""
    module = parts if on == "train" else journal
    original = getattr(module, on)

    def train(*args, **kwargs):
        for step in original(*args, **kwargs):
            if step.number == at:
                act()
            yield step

    def epoch_line(made, *args):
        if made.step == at:
            act()
        return original(made, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, on, {"train": train}.get(on, epoch_line))
        yield


def interrupt(run: Config, way: type, at: int, on: str = "train") -> None:
    """Start the run and end it at a step, by a crash or as a signal does."""
    stop = Stop()

    def act() -> None:
        if way is Crash:
            raise Crash
        stop.received = signal.SIGTERM

    with spying(at, act, on), pytest.raises(way):
        runner.run(run, stop=stop)


PLACES = [("train", 1), ("train", 14), ("train", 10), ("epoch_line", 10)]
PLACES += [("train", 20), ("epoch_line", 20)]


@pytest.mark.parametrize("model", ["mlp", "cnn", "fast-cnn"])
@pytest.mark.parametrize("way", [Crash, Stopped])
@pytest.mark.parametrize(("on", "at"), PLACES)
def test_it_ends_as_if_never_interrupted(
    tmp_path, undisturbed, model: str, way: type, on: str, at: int
) -> None:
    """In the first step, inside an epoch, and on both sides of each evaluation."""
    run = functools.partial(settings, tmp_path, model={"name": model, "dropout": 0.3})
    interrupt(run(), way, at, on)
    newest, _ = checkpoint.find_newest(tmp_path / "checkpoints")
    assert newest is not None
    assert newest.step == at if way is Stopped else at - 3 <= newest.step < at
    assert told(tmp_path, runner.run(run(resume=True))) == undisturbed(model)


def test_it_can_be_interrupted_again_and_again(tmp_path, undisturbed) -> None:
    for way, at in [(Crash, 1), (Stopped, 4), (Crash, 5), (Crash, 10), (Stopped, 17)]:
        run = settings(tmp_path, log={"every": 1}, resume=at > 1)
        interrupt(run, way, at)
    summary = runner.run(settings(tmp_path, log={"every": 1}, resume=True))
    assert told(tmp_path, summary) == undisturbed(every=1)


@pytest.mark.parametrize(("at", "day"), [(1, 0), (15, 0), (15, -86_400)])
def test_what_came_after_the_checkpoint_is_dropped(
    tmp_path, undisturbed, monkeypatch, at: int, day: int
) -> None:
    """A copy made mid-run is what a kill leaves; the clock may go back a day then."""
    running, killed = tmp_path / "running", tmp_path / "killed"
    monkeypatch.setattr("minitrain.runs.board.FLUSH_SECONDS", 0)
    with spying(at, lambda: shutil.copytree(running, killed)):
        runner.run(settings(running, log={"every": 1}))
    assert max([step for _, step in points(killed)], default=0) == at - 1
    (events,) = killed.glob("events.*")
    part = f".{events.name}.{'0' * 16}.part"  # TensorBoard takes it for an event file
    shutil.copy(events, killed / part)
    (killed / ".mine.part").touch()
    clock = SimpleNamespace(time=lambda: time.time() + day, monotonic=time.monotonic)
    monkeypatch.setattr("minitrain.runs.board.time", clock)
    summary = runner.run(settings(killed, log={"every": 1}, resume=True))
    assert told(killed, summary) == undisturbed(every=1)
    assert [path.name for path in killed.rglob(".*")] == [".mine.part"]


def test_points_that_were_damaged_are_told(tmp_path, undisturbed, capsys) -> None:
    """TensorBoard reads on until the damage, and says nothing."""
    interrupt(settings(tmp_path, log={"every": 1}), Stopped, 14)
    (events,) = tmp_path.glob("events.*")
    whole = bytearray(events.read_bytes())
    whole[len(whole) // 2] ^= 1
    events.write_bytes(whole)
    summary = runner.run(settings(tmp_path, log={"every": 1}, resume=True))
    assert summary.fingerprint == undisturbed()[0]
    (line,) = capsys.readouterr().err.splitlines()
    told = re.search(r"after step (\d+) may be missing: (\d+) bytes of .*events", line)
    assert told and 0 < int(told[1]) < 14 and int(told[2]) < 3000  # of one record
    (corrupt,) = tmp_path.glob("*.corrupt")
    assert corrupt.read_bytes() == whole
    missing = undisturbed(every=1)[2].keys() - points(tmp_path).keys()
    assert {step for _, step in missing} == {int(told[1]) + 1}


FORKS = """
import os, random, signal, sys, time
from pathlib import Path
from minitrain.experiment import runner
from minitrain.experiment import Config

num_kills, seed = int(sys.argv[1]), int(sys.argv[2])
pauses, finished, code = random.Random(seed), 0, 0

while finished < 2 or num_kills > 0 or code != 0:  # the first is never killed
    child = os.fork()
    if child == 0:
        often = {"log": {"every": 1}, "checkpoint": {"every": 7}}
        few = {"name": "digits", "batch_size": 10}
        parts = {"data": few, "model": {"dropout": 0.3}}
        folder = Path(f"run-{finished}")
        often["instruments"] = {"look": 1, "audit": 2, "truth": 5, "noise": 3}
        folder.mkdir(exist_ok=True)
        config = Config(run_dir=folder, resume=True, epochs=4, **parts, **often)
        runner.run(config)
        os._exit(0)
    if finished > 0 and num_kills > 0:
        time.sleep(pauses.uniform(0.02, 0.6))
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 0:
        finished += 1
    elif code == -signal.SIGKILL:
        num_kills -= 1
    else:
        sys.exit(f"the run ended with {code}")
"""


def test_kills_at_random_instants_change_nothing(tmp_path: Path) -> None:
    """SIGKILL, as the kernel does when memory is short; the lock dies with it."""
    seed = time.time_ns()
    command = [sys.executable, "-c", FORKS, str(NUM_KILLS), str(seed)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    for folder in tmp_path.iterdir():
        kept, expected = (
            json.loads((path / "summary.json").read_text())
            for path in (folder, tmp_path / "run-0")
        )
        assert kept["steps"] == 256 and kept["status"] == "finished"
        assert kept["fingerprint"] == expected["fingerprint"], f"seed {seed}, {folder}"
        assert points(folder) == points(tmp_path / "run-0"), f"seed {seed}, {folder}"


def test_without_a_checkpoint_it_begins_anew(tmp_path, undisturbed, capsys) -> None:
    summary = runner.run(settings(tmp_path, resume=True))
    assert f"{tmp_path} holds no checkpoint yet" in capsys.readouterr().out
    assert told(tmp_path, summary) == undisturbed()
    assert terminal.exit_code(lambda: bool(parse(["--resume"]))) == 2


def test_a_finished_run_is_left_alone_and_can_go_on(
    tmp_path, undisturbed, capsys
) -> None:
    constant = {"schedule": {"name": "constant"}}
    once = runner.run(settings(tmp_path / "once", **constant, epochs=3))
    run = functools.partial(settings, tmp_path / "twice", **constant)
    summary = runner.run(run())
    before = contents(tmp_path / "twice")
    assert runner.run(run(resume=True)) == summary
    assert contents(tmp_path / "twice") == before
    assert "is finished" in capsys.readouterr().out
    old = (tmp_path / "twice" / "summary.json").read_bytes()
    assert runner.run(run(resume=True, epochs=3)).fingerprint == once.fingerprint
    assert points(tmp_path / "twice") == points(tmp_path / "once")
    # Killed before the new summary: the old one is not that of this end.
    (tmp_path / "twice" / "summary.json").write_bytes(old)
    assert runner.run(run(resume=True, epochs=3)).steps == 30
    assert json.loads((tmp_path / "twice" / "summary.json").read_text())["steps"] == 30


def test_settings_that_change_the_result_are_bound(
    tmp_path, undisturbed, capsys
) -> None:
    interrupt(settings(tmp_path), Stopped, 14)
    before = contents(tmp_path)
    free = {"log": {"every": 5}, "checkpoint": {"every": 4, "keep": 3}}
    changed = settings(tmp_path, resume=True, optimizer={"lr": 0.01}, **free)
    with pytest.raises(SettingsError, match=r":\n  optimizer.lr: 0.05 -> 0.01$"):
        runner.run(changed)
    assert contents(tmp_path) == before
    summary = runner.run(settings(tmp_path, resume=True, **free))
    assert summary.fingerprint == undisturbed()[0]
    out = capsys.readouterr().out
    for line in ("log.every: 10 -> 5", "checkpoint.every: 3 -> 4"):
        assert f"changed {line}\n" in out
    allowed = settings(
        tmp_path, resume=True, allow_changes=True, epochs=3, optimizer={"lr": 0.01}
    )
    assert runner.run(allowed).steps == 30
    section = allowed.model.model_copy(update={"hidden": (7,)})
    narrow = allowed.model_copy(update={"model": section})
    with pytest.raises(CheckpointError, match="does not fit the model"):
        runner.run(narrow)
    assert "changed optimizer.lr: 0.05 -> 0.01\n" in capsys.readouterr().out


SETTINGS = {
    "free": """device='cuda' threads=2 data.root='elsewhere' data.workers=2
        log.every=3 log.pictures=2
        checkpoint.every=3 checkpoint.keep=3 instruments.budget=0.5 instruments.look=1
        instruments.audit=1 instruments.truth=1 instruments.noise=1
        instruments.sharpness=true instruments.histograms=true""",
    "bound": """epochs=9 seed=1 shards=4 precision='bfloat16' clip-norm=1.0 accumulate=2
        data.name='mnist' data.batch-size=32 model.name='cnn' model.hidden=[64]
        loss.label-smoothing=0.1
        model.dropout=0.5
        optimizer.lr=0.1 optimizer.momentum=0.5 optimizer.dampening=0.5
        optimizer.weight-decay=0.5 optimizer.nesterov=true optimizer.decay='matrices'
        data.validation=0.1 stop.patience=3 ema=0.9
        schedule.name='step' schedule.warmup=5""",
    "how it is started": "allow-changes=true trust-code=true debug=true run-dir='e'",
}
CLASSES = {s: kind for kind, settings in SETTINGS.items() for s in settings.split()}


@pytest.mark.parametrize(("setting", "kind"), CLASSES.items())
def test_every_setting_is_free_or_bound(setting: str, kind: str) -> None:
    key = setting.split("=")[0]
    old, new = flatten(Config()), flatten(from_toml(setting))
    changed = changes(old, new, free_keys(old, new))
    found = [(each.key, each.is_free) for each in changed]
    assert found == ([(key, kind == "free")] if kind in ("free", "bound") else [])


def test_more_epochs_are_free_where_no_step_changes_by_them() -> None:
    """Under every other schedule the learning rate goes by the number of steps."""
    flat = flatten(Config())
    for name, other in itertools.product(schedules.SCHEDULES, repeat=2):
        old, new = ({**flat, "schedule.name": each} for each in (name, other))
        assert ("epochs" in free_keys(old, new)) == (name == other == "constant")


def test_no_setting_is_forgotten() -> None:
    sections = {name for name, value in Config() if isinstance(value, Settings)}
    known = {setting.split("=")[0] for setting in CLASSES}
    assert set(keys(Config)) == known | sections | {"resume"}


def test_more_epochs_change_the_steps_of_a_schedule(tmp_path, capsys) -> None:
    """The next step is then another one than the run would have made."""
    interrupt(settings(tmp_path), Stopped, 14)
    before = contents(tmp_path)
    with pytest.raises(SettingsError, match=r"alone:\n  epochs: 2 -> 3$"):
        runner.run(settings(tmp_path, resume=True, epochs=3))
    assert contents(tmp_path) == before
    allowed = settings(tmp_path, resume=True, epochs=3, allow_changes=True)
    summary = runner.run(allowed)
    change = {"step": 14, "key": "epochs", "old": 2, "new": 3}
    assert summary.steps == 30 and summary.changes == [change]
    kept = json.loads((tmp_path / "summary.json").read_text())
    assert kept["changes"] == [change]


def hash_of(dataset: Dataset) -> str:
    parts = {"train": dataset.train, "test": dataset.test}
    samples = {k: (dataset.inputs(part), part.labels) for k, part in parts.items()}
    return fingerprint(samples)


def test_other_data_are_refused_by_their_hash(tmp_path, monkeypatch) -> None:
    interrupt(settings(tmp_path), Stopped, 14)
    before = contents(tmp_path)
    kept = json.loads((tmp_path / "summary.json").read_text())
    whole = builtin.load_data("digits")
    tensors = {"train": whole.train, "test": whole.test}
    assert kept["data_sha256"] == hash_of(whole)
    for part in ("train", "test"):
        images, labels = tensors[part]
        other = images.clone()
        other[-1, -1, -1] += 1  # one pixel of one image
        changed = replace(whole, **{part: type(whole.train)(other, labels)})
        monkeypatch.setattr(digits, "digits", lambda root, d=changed: d)
        now = hash_of(changed)
        told = rf"data.sha256: {kept['data_sha256']} -> {now}$"
        with pytest.raises(SettingsError, match=told):
            runner.run(settings(tmp_path, resume=True))
        assert contents(tmp_path) == before
    summary = runner.run(settings(tmp_path, resume=True, allow_changes=True))
    hashes = {"old": kept["data_sha256"], "new": now}
    assert summary.changes == [{"step": 14, "key": "data.sha256", **hashes}]
    assert summary.data_sha256 == now


def test_what_may_change_the_last_bits_is_told(tmp_path, monkeypatch, capsys) -> None:
    """And the summary tells the versions that the end was computed with."""
    monkeypatch.setattr("minitrain.runs.summary.version", lambda name: f"{name} 1")
    interrupt(settings(tmp_path), Stopped, 14)
    capsys.readouterr()
    for versions, threads, told in [(1, 1, []), (2, 1, ["torch"]), (2, 2, ["threads"])]:
        monkeypatch.setattr(
            "minitrain.runs.summary.version", lambda name, v=versions: f"{name} {v}"
        )
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        interrupt(settings(tmp_path, resume=True), Stopped, 15 + threads + versions)
        out = capsys.readouterr().out
        assert ("the last bits may differ" in out) == bool(told)
        assert [line for line in told if f"changed {line}: " in out] == told
        kept = json.loads((tmp_path / "summary.json").read_text())
        assert kept["versions"]["torch"] == f"torch {versions}"


def test_a_checkpoint_of_an_accelerator_is_continued_on_the_cpu(
    tmp_path, undisturbed, capsys
) -> None:
    """Here a CPU's, relabelled: the state of a generator that is not there is left."""
    interrupt(settings(tmp_path), Stopped, 14)
    (*_, path) = checkpoint.find_all(tmp_path / "checkpoints")
    kept = checkpoint.load(path).state
    path.unlink()
    kept["settings"] = kept["settings"].replace('"cpu"', '"cuda:0"')
    kept["random"]["cuda"] = torch.zeros(16, dtype=torch.uint8)
    checkpoint.save(tmp_path / "checkpoints", kept.pop("step"), kept)
    summary = runner.run(settings(tmp_path, resume=True, device="cpu"))
    assert told(tmp_path, summary) == undisturbed()
    out = capsys.readouterr().out
    assert "changed device: cuda:0 -> cpu\n" in out and "last bits may differ" in out


def test_a_checkpoint_holds_the_run_and_what_it_was_made_with(tmp_path) -> None:
    interrupt(settings(tmp_path / "a"), Stopped, 4)
    runner.run(settings(tmp_path / "a", resume=True))
    runner.run(settings(tmp_path / "b"))
    kept = {
        folder: [checkpoint.load(path).state["summary"] for path in paths]
        for folder in "ab"
        if (paths := checkpoint.find_all(tmp_path / folder / "checkpoints"))
    }
    first, second = ({s["run_id"] for s in summaries} for summaries in kept.values())
    assert len(first) == len(second) == 1 and first != second
    found, _ = checkpoint.find_newest(tmp_path / "a" / "checkpoints")
    assert found is not None
    version = found.state["summary"]["versions"]["torch"]
    assert torch.__version__.startswith(version)
    assert "threads = " in found.state["settings"]
    assert torch.equal(found.state["random"]["cpu"], torch.get_rng_state())


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("num_failures", [1, 2, 3])
def test_a_disk_that_is_full_for_a_while_is_ridden_out(
    tmp_path, monkeypatch, undisturbed, capsys, num_failures: int
) -> None:
    """What was there stays, until the new one is; the third failure is too many."""
    replace, failing = os.replace, itertools.count(1)
    folder, kept = tmp_path / "checkpoints", []

    def sometimes(source, target) -> None:
        if "checkpoints" in str(target):
            kept.append([path.name[:13] for path in checkpoint.find_all(folder)])
            if 3 <= next(failing) < 3 + num_failures:
                raise full()
        replace(source, target)

    monkeypatch.setattr(os, "replace", sometimes)
    code = terminal.exit_code(lambda: int(runner.run(settings(tmp_path)) is None))
    out, error = capsys.readouterr()
    first = ["step-00000000", "step-00000003"]
    assert kept[2 : 3 + num_failures] == [first] * len(kept[2 : 3 + num_failures])
    if num_failures < 3:
        assert code == 0 and out.count("; training goes on\n") == num_failures
        monkeypatch.setattr(os, "replace", replace)
    else:
        assert code == 5 and "The checkpoint of step 3 is safe" in error
        assert re.search(r"of step 10 failed: .*No space left.*bytes are free", error)
        monkeypatch.setattr(os, "replace", replace)
        runner.run(settings(tmp_path, resume=True))
    summary = json.loads((tmp_path / "summary.json").read_text())
    outcome = summary["fingerprint"], summary["test_accuracy"], points(tmp_path)
    assert outcome == undisturbed()


@pytest.mark.parametrize("num_failures", [3, 10**9])
def test_points_that_cannot_be_written_cost_no_training(
    tmp_path, monkeypatch, undisturbed, capsys, num_failures: int
) -> None:
    """They wait until they can, or are told to be lost at the end."""
    expected = undisturbed(every=1)
    count, append = itertools.count(1), events.EventFile._append

    def failing(file: events.EventFile) -> None:
        if 3 < next(count) <= 3 + num_failures:
            raise full()
        append(file)

    monkeypatch.setattr(events.EventFile, "_append", failing)
    summary = runner.run(settings(tmp_path, log={"every": 1}))
    error = capsys.readouterr().err
    warning = "warning: points for TensorBoard cannot be written to "
    assert error.count(warning) == 1 and "No space left on device" in error
    assert f"{tmp_path}/events" in error
    if num_failures < 10**9:
        assert told(tmp_path, summary) == expected and "written again" in error
    else:
        assert summary.fingerprint == expected[0] and "points for TensorB" in error
        assert "were lost" in error


def test_a_damaged_checkpoint_is_passed_over(tmp_path, undisturbed, capsys) -> None:
    runner.run(settings(tmp_path))
    path = checkpoint.find_all(tmp_path / "checkpoints")[-1]
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    summary = runner.run(settings(tmp_path, resume=True))
    assert told(tmp_path, summary) == undisturbed()
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if "is damaged" in line]
    assert "step-00000020" in line and line.endswith("; using step=18")


def test_it_never_begins_anew_in_silence(tmp_path, capsys) -> None:
    runner.run(settings(tmp_path))
    for path in checkpoint.find_all(tmp_path / "checkpoints"):
        path.write_bytes(b"")
    run = settings(tmp_path, resume=True)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"no checkpoint in .* is intact"):
            runner.run(run)
    assert terminal.exit_code(lambda: bool(runner.run(run))) == 4


def test_flags_stand_above_the_settings_kept_in_the_run(tmp_path) -> None:
    kept = settings(tmp_path, seed=5, model={"hidden": (7, 9)}, clip_norm=2.0)
    interrupt(kept, Stopped, 1)
    flags = ["--resume", "--run-dir", str(tmp_path), "--clip-norm", "3"]
    found = parse(flags)
    assert found.resume and (found.seed, found.model.hidden) == (5, (7, 9))
    assert (found.clip_norm, found.checkpoint.every) == (3, 3)
    old, new = flatten(kept), flatten(found)
    changed = changes(old, new, free_keys(old, new))
    bound = [str(change) for change in changed if not change.is_free]
    assert bound == ["clip-norm: 2.0 -> 3.0"]


def state(model, optimizer) -> str:
    return fingerprint(model.state_dict(), optimizer.state_dict()["state"])


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> list[tuple]:
    """The state after each step of an undisturbed run, and how the step was made."""
    made: list[tuple] = []
    train = parts.train

    def spy(model, optimizer, *args, **kwargs):
        made.append((state(model, optimizer), None))
        for step in train(model, optimizer, *args, **kwargs):
            made.append((state(model, optimizer), step))
            yield step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "train", spy)
        runner.run(settings(tmp_path_factory.mktemp("history")))
    return made


@pytest.mark.parametrize("at", [1, 2, 8, 14, 20])
@pytest.mark.parametrize("where", ["loss", "gradient", "input"])
def test_a_step_that_is_not_finite_is_not_made(
    tmp_path, monkeypatch, capsys, history, where: str, at: int
) -> None:
    """A NaN planted in one step ends the run there, and never reaches a parameter."""
    train, states, names = parts.train, [], []

    def planted(model, optimizer, batches, loss_fn, **others):
        names.extend(name for name, _ in model.named_parameters())
        count = itertools.count(1)

        def spoil(tensor):
            if where != "gradient" and not torch.is_grad_enabled():
                return tensor  # an audit: the fault is in the training
            return tensor * torch.nan if next(count) == at else tensor

        def loss(outputs, targets):
            value = loss_fn(outputs, targets)
            return value + spoil(torch.ones(())) - 1 if where == "loss" else value

        if where == "gradient":
            model.get_parameter(names[-1]).register_hook(spoil)
        if where == "input":
            model.register_forward_pre_hook(
                lambda model, x: spoil(x[0]) if model.training else x
            )
        try:
            yield from train(model, optimizer, batches, loss, **others)
        finally:
            states.append(state(model, optimizer))

    monkeypatch.setattr(parts, "train", planted)
    assert terminal.exit_code(lambda: train_command(settings(tmp_path))) == 6
    assert states == [history[at - 1][0]]
    error = capsys.readouterr().err
    step = history[at][1]
    first = {
        "loss": "in the loss alone",
        "gradient": f"first in the gradient of {names[-1]}",
        "input": f"first in the gradient of {names[0]}",
    }[where]
    loss = f"{step.loss:.4g}" if where == "gradient" else "nan"
    norm = f"{step.grad_norm:.4g}" if where == "loss" else "nan"
    assert f"step {at} is not finite, {first}: loss {loss}, |grad L| {norm}" in error
    assert f"lr {step.lr:.4g}." in error and "Traceback" not in error
    for path in checkpoint.find_all(tmp_path / "checkpoints"):
        kept = checkpoint.load(path).state
        momentum = [s["momentum_buffer"] for s in kept["optimizer"]["state"].values()]
        tensors = [*kept["model"].values(), *momentum]
        assert kept["step"] < at and all(t.isfinite().all() for t in tensors)


def start(log: Path, *flags: object, before: tuple = ()) -> subprocess.Popen:
    """Start the program itself; its lines go to a file, to be read while it runs."""
    command = [*before, sys.executable, SCRIPT, "--data.name", "digits", *flags]
    arguments = [str(part) for part in command]
    with log.open("w") as out:
        return subprocess.Popen(arguments, stdout=out, stderr=subprocess.PIPE)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_ends_a_run_once_its_step_is_saved(tmp_path, name: str) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    flags = ("--run-dir", folder, "--epochs", 100_000, "--checkpoint.every", 3)
    before = ("nohup",) if name == "SIGTERM" else ()
    process = start(log, *flags, before=before)
    while "saved checkpoint step=12 " not in log.read_text():
        assert process.poll() is None
        time.sleep(0.02)
    if before:
        process.send_signal(signal.SIGHUP)  # stays ignored
        time.sleep(0.2)
    sent, number = time.monotonic(), getattr(signal, name)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 128 + number and time.monotonic() - sent < 5
    assert f"{name}: saving after this step" in error and "Traceback" not in error
    step = int(re.findall(r"^saved checkpoint step=(\d+)", log.read_text(), re.M)[-1])
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("interrupted", step)
    epochs = step // 10 + 1
    flags = ("--resume", "--allow-changes", "--run-dir", folder, "--epochs", epochs)
    more = parse([str(flag) for flag in flags])
    assert runner.run(more).steps == 10 * epochs
    points(folder)


def test_a_signal_during_the_imports_ends_the_program_at_once(tmp_path) -> None:
    process = start(tmp_path / "log", "--run-dir", tmp_path / "run")
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        process.kill()
        pytest.skip("needs /proc, to see that the handlers are installed")

    def caught() -> int:
        return int(status.read_text().split("SigCgt:")[1].split()[0], 16)

    while not caught() >> (signal.SIGTERM - 1) & 1:
        time.sleep(0.005)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=5)[1] == b""
    assert process.returncode == 130 and not (tmp_path / "run").exists()


def test_a_second_ctrl_c_leaves_at_once() -> None:
    code = (
        "import time; from minitrain.system.signals import Stop\n"
        "stop = Stop().install()\n"
        "with stop: print(flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == b"\n"
    assert b"Ctrl-C again to leave at once" in process.stderr.readline()
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=1)
    assert process.returncode == 130


def test_a_second_run_stays_out_of_a_directory_in_use(tmp_path, undisturbed) -> None:
    def intrude() -> None:
        before = contents(tmp_path)
        second = settings(tmp_path, resume=True)
        with torch.random.fork_rng(devices=[]):  # a process of its own has its own
            with pytest.raises(RunDirectoryError, match=f"process {os.getpid()} on "):
                runner.run(second)
            assert contents(tmp_path) == before
            assert terminal.exit_code(lambda: bool(runner.run(second))) == 7

    with spying(5, intrude):
        summary = runner.run(settings(tmp_path))
    assert told(tmp_path, summary) == undisturbed()
