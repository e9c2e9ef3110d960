"""Runs that processes share: the bits of one process, whatever becomes of them."""

import functools
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.processes import in_group
from harness.runs import PANEL, points, verified

from minitrain import tags
from minitrain.distributed import group
from minitrain.experiment import Config, parts, runner
from minitrain.experiment.reading import parse
from minitrain.runs import summary as summaries
from minitrain.runs.summary import Summary
from minitrain.system.errors import GroupError, SettingsError, Stopped
from minitrain.system.signals import Stop

pytestmark = pytest.mark.usefixtures("few_digits")

Work = Callable[[int, Config], Summary]

NORMALIZED = '''
"""Images in a data set of worker processes, and a network with BatchNorm."""

import torch
from torch import nn

from minitrain import Data


class Noisy(torch.utils.data.Dataset):
    def __init__(self, num, seed):
        generator = torch.Generator().manual_seed(seed)
        self.targets = torch.randint(10, (num,), generator=generator)
        self.inputs = torch.randn(num, 30, generator=generator)
        self.inputs[torch.arange(num), self.targets] += 2

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.inputs[index] + 0.1 * torch.randn(30), self.targets[index]


def data() -> Data:
    return Data(Noisy(328, seed=0), Noisy(200, seed=1))


def model() -> nn.Module:
    hidden = nn.Linear(30, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.2)
    return nn.Sequential(*hidden, nn.Linear(20, 10))
'''

CASES = {
    "mlp": """--data.name digits --data.validation 0.1 --data.batch-size 60 --ema 0.9
        --model.dropout 0.2 --clip-norm 1 --accumulate 2 --log.every 3""",
    "softmax": "--data.name digits --model.name softmax --data.batch-size 51",
    "cnn": "--data.name digits --model.name cnn --data.batch-size 256",
    "normalized": "FILE --data.workers 1 --data.batch-size 64",
}
"""The last batch of each has another size than the others."""


@pytest.fixture
def config_of(tmp_path: Path) -> Callable[..., Config]:
    """Return the settings of a case, with a run directory of that name."""

    def get(case: str, name: str, *others: str) -> Config:
        file = tmp_path / "normalized.py"
        file.write_text(NORMALIZED)
        panel = [f"--instruments.{kind}={every}" for kind, every in PANEL.items()]
        words = CASES[case].replace("FILE", str(file)).split()
        words += ["--epochs", "2", "--shards", "4", "--checkpoint.every", "3"]
        run_dir = str(tmp_path / name)
        return parse([*words, *panel, "--run-dir", run_dir, *others], "train")

    return get


def told(folder: Path, summary: Summary) -> tuple:
    fields = (summary.fingerprint, summary.test_metrics, summary.average_metrics)
    return *fields, summary.fingerprints, summary.best_step, curves(folder)


def curves(folder: Path) -> dict:
    """All points, but for the time that processes wait for each other."""
    return {key: x for key, x in points(folder).items() if key[0] != tags.WAITING}


def run_on(world_size: int, config: Config) -> Summary | Exception:
    """Run on as many processes; return the summary, or the first error, of rank 0."""
    if world_size == 1:
        return runner.run(config)
    return in_group(world_size, lambda rank: runner.run(config))[0]


@pytest.mark.parametrize("case", CASES)
def test_the_number_of_processes_changes_no_bit(case: str, config_of, tmp_path) -> None:
    """Nor a point of a curve, nor what a validation set chooses."""
    alone = told(tmp_path / "1", runner.run(config_of(case, "1")))
    for world_size in (2, 4):
        folder = tmp_path / str(world_size)
        shared = run_on(world_size, config_of(case, folder.name))
        assert isinstance(shared, Summary) and told(folder, shared) == alone


def at_step(number: int, act: Callable[[], object], rank: int) -> Work:
    """Return what has a rank act between a step of a run and the next one."""

    def work(own: int, config: Config) -> Summary:
        train = parts.Run.train

        def watched(self: parts.Run, start: int = 0):
            for step in train(self, start):
                yield step
                if step.number == number and own == rank:
                    act()

        parts.Run.train = watched
        return runner.run(config, stop=Stop().install())

    return work


def test_killed_on_four_it_goes_on_alone_and_then_on_two(config_of, tmp_path) -> None:
    undisturbed = told(tmp_path / "whole", runner.run(config_of("mlp", "whole")))
    config, again = config_of("mlp", "a"), config_of("mlp", "a", "--resume")
    work = at_step(4, lambda: os.kill(os.getpid(), signal.SIGKILL), rank=2)
    results = in_group(4, lambda rank: work(rank, config))
    assert results.pop(2) is None
    for error in results:
        assert isinstance(error, GroupError) and error.exit_code == 8
        assert str(error).startswith("rank 2 of 4 has died. Every checkpoint that was")
    assert max(verified(tmp_path / "a" / "checkpoints")) == 3
    work = at_step(7, lambda: signal.raise_signal(signal.SIGTERM), rank=0)
    (stopped,) = in_group(1, lambda rank: work(rank, again))
    assert isinstance(stopped, Stopped)
    assert max(verified(tmp_path / "a" / "checkpoints")) == 8
    summary = run_on(2, again)
    assert isinstance(summary, Summary)
    assert told(tmp_path / "a", summary)[:3] == undisturbed[:3]
    assert curves(tmp_path / "a") == undisturbed[-1]


def test_a_signal_to_one_ends_all_after_the_same_step(config_of, tmp_path) -> None:
    config = config_of("softmax", "a")
    work = at_step(4, lambda: signal.raise_signal(signal.SIGTERM), rank=1)
    results = in_group(2, lambda rank: work(rank, config))
    assert [str(each) for each in results] == [str(Stopped(signal.SIGTERM))] * 2
    # What rank 1 received after step 4 all know with the numbers of step 5.
    assert max(verified(tmp_path / "a" / "checkpoints")) == 5
    assert (summaries.read_summary(tmp_path / "a") or {})["status"] == "interrupted"


def test_a_rank_that_hangs_is_named(config_of, monkeypatch) -> None:
    monkeypatch.setattr(group, "PATIENCE", 2.0)
    config = config_of("softmax", "a")
    work = at_step(4, lambda: os.kill(os.getpid(), signal.SIGSTOP), rank=1)
    error, hung = in_group(2, lambda rank: work(rank, config))
    assert isinstance(error, GroupError) and hung is None
    assert "rank 1 of 2 hangs: it gives no sign of life for 2 seconds" in str(error)


def test_an_error_of_one_is_told_by_the_others(config_of) -> None:
    def fail() -> None:
        raise ValueError("no such thing")

    work = at_step(4, fail, rank=1)
    config = config_of("softmax", "a")
    error, own = in_group(2, lambda rank: work(rank, config))
    assert isinstance(own, ValueError)
    assert "rank 1 of 2 ended by itself: ValueError: no such thing." in str(error)


def test_processes_that_do_not_divide_the_shards_are_refused(
    config_of, tmp_path, monkeypatch
) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    for world_size in ("3", "8"):
        monkeypatch.setenv("WORLD_SIZE", world_size)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", world_size)
        with pytest.raises(SettingsError, match=f"= 4: {world_size} processes cannot"):
            runner.run(config_of("mlp", "a"))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed is 0 on rank 0 and 1 on rank 1"),
        ({"clip_norm": 2.0}, "clip-norm is None on rank 0 and 2.0 on rank 1"),
        ("torch", "torch is .* on rank 0 and 1.0 on rank 1"),
    ],
)
def test_ranks_that_differ_are_refused(change, message, config_of, tmp_path) -> None:
    config = config_of("softmax", "a")

    def work(rank: int) -> Summary:
        if rank and change == "torch":
            versions = {**summaries.installed_versions(), "torch": "1.0"}
            parts.installed_versions = lambda: versions
        elif rank:
            return runner.run(config.model_copy(update=change))
        return runner.run(config)

    for error in in_group(2, work):
        assert isinstance(error, SettingsError)
        with pytest.raises(SettingsError, match=message):
            raise error
    assert not (tmp_path / "a").exists()


def test_more_shards_than_samples_in_a_batch(config_of) -> None:
    with pytest.raises(SettingsError, match="3 samples cannot be cut into so many"):
        runner.run(Config(shards=4, data={"batch_size": 3}))


@pytest.mark.parametrize("shards", [0, 3, 6])
def test_shards_are_a_power_of_two(shards: int) -> None:
    with pytest.raises(SettingsError, match="shards"):
        Config(shards=shards)


NUM_KILLS = int(os.environ.get("MINITRAIN_NUM_RANK_KILLS", 3))
NUM_STOPS = int(os.environ.get("MINITRAIN_NUM_RANK_STOPS", 0))
"""Each of them waits for ten seconds: `test_a_rank_that_hangs_is_named` is quicker."""


@pytest.mark.parametrize(
    ("number", "repetitions", "limit"),
    [(signal.SIGKILL, NUM_KILLS, 5), (signal.SIGSTOP, NUM_STOPS, 15)],
    ids=["killed", "stopped"],
)
def test_ranks_that_die_at_random_lose_nothing(
    number, repetitions, limit, config_of, tmp_path, rng
) -> None:
    """The others end in time, each promise is kept, and any number may go on."""
    whole = told(tmp_path / "whole", runner.run(config_of("mlp", "whole")))
    for life in range(repetitions):
        world_size = rng.choice([2, 4])
        victim, wait = rng.randrange(world_size), rng.uniform(0.2, 1.5)
        work = functools.partial(die, victim, number, wait, config_of("mlp", str(life)))
        results = in_group(world_size, work)
        folder = tmp_path / str(life)
        saved = re.findall(r"saved checkpoint step=(\d+)", read(folder, ".out"))
        if saved:
            assert int(saved[-1]) in verified(folder / "checkpoints")
        if results[victim] is None:
            died_at = float(read(folder, ".died"))
            del results[victim]
            for error in results:
                if isinstance(error, Summary):
                    continue  # it had done its part before
                if error is None and saved in ([], ["0"]):
                    continue  # it was ended before there was anything to lose
                assert isinstance(error, GroupError), results
                assert f"rank {victim}" in str(error)
                has_stepped = int((saved or ["0"])[-1]) > 0  # else it may be loading
                late = limit if has_stepped or number == signal.SIGKILL else 60
                assert vars(error)["at"] - died_at < late
        resumed = config_of("mlp", str(life), *["--resume"] * folder.exists())
        summary = run_on(rng.choice([1, 2, 4]), resumed)
        assert isinstance(summary, Summary)
        assert told(folder, summary)[:3] == whole[:3] and curves(folder) == whole[-1]


def die(victim: int, number: int, wait: float, config: Config, rank: int) -> Summary:
    """Run, as the rank that dies or as one that outlives it, and note when it ends."""
    assert config.run_dir is not None

    def act() -> None:
        config.run_dir.with_suffix(".died").write_text(str(time.monotonic()))
        os.kill(os.getpid(), number)

    if rank == victim:
        timer = threading.Timer(wait, act)
        timer.daemon = True
        timer.start()
    if rank == 0:
        file = config.run_dir.with_suffix(".out").open("w")
        sys.stdout = file
    try:
        return runner.run(config, stop=Stop().install())
    except GroupError as error:
        vars(error)["at"] = time.monotonic()
        raise


def read(folder: Path, suffix: str) -> str:
    return folder.with_suffix(suffix).read_text()
