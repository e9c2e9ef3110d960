"""Steps that two processes share, against one process, and against DDP.

The sides take turns, some steps each, in the same two processes: where one process
works alone, the other one sleeps. `rows` starts them by torchrun.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from benchmarks.compare import Row, row
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from minitrain import SGD, Batches, ParameterVector, train
from minitrain.distributed.group import Group, Single, joined
from minitrain.distributed.launch import Launch
from minitrain.models import CNN, MLP
from minitrain.shards import Alone, Shards

SCRIPTS = Path(__file__).parents[1]
OPTIONS: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
LOSS = nn.functional.cross_entropy

CASES = {
    "MLP, batch 64": (MLP, 64, 100),
    "MLP, batch 512": (MLP, 512, 50),
    "CNN, batch 256": (CNN, 256, 4),
}
"""Model, samples in a batch, and the steps of one turn."""

SHARED, WHOLE, DDP = "two processes", "one process, one thread", "a bare loop in DDP"


def rows(rounds: int) -> Iterator[Row]:
    """Steps of the same batch, and a whole epoch under torchrun and without it."""
    words = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"]
    told = _run(*words, "benchmarks.shared", str(rounds))
    for case, sides in json.loads(told.splitlines()[-1]).items():
        ours = sides[SHARED]
        for peer in (WHOLE, DDP):
            yield row(f"{case}, {SHARED}", ours, peer, sides[peer])
    alone = [str(SCRIPTS / "train.py"), "--epochs", "1"]
    started = ["-m", "torch.distributed.run", "--nproc-per-node", "1", *alone]
    seconds = [
        (_train_seconds(*started), _train_seconds(*alone)) for _ in range(rounds)
    ]
    ours, theirs = map(list, zip(*seconds, strict=True))
    yield row("one process under torchrun, an epoch", ours, "without torchrun", theirs)


def _train_seconds(*words: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        _run(*words, "--run-dir", folder)
        return json.loads((Path(folder) / "summary.json").read_text())["train_seconds"]


def _run(*words: str) -> str:
    paths = os.pathsep.join([str(SCRIPTS), str(SCRIPTS.parent)])
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def measure(group: Group, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of a step, by case and side, of every round."""
    found = {}
    for case, (make_model, batch_size, num_steps) in CASES.items():
        sides = {
            SHARED: _ours(make_model, batch_size, group),
            WHOLE: _ours(make_model, batch_size, Alone()),
            DDP: _ddp(make_model, batch_size, group),
        }
        found[case] = {side: list[float]() for side in sides}
        for number in range(rounds + 1):
            for side, steps in sides.items():
                dist.barrier()
                if side == WHOLE and group.rank:
                    continue
                start = time.perf_counter()
                for _ in islice(steps, num_steps):
                    pass
                if number:  # the first round warms up
                    seconds = (time.perf_counter() - start) / num_steps
                    found[case][side].append(seconds)
    return found


def _data(batch_size: int) -> Batches:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(20 * batch_size, 1, 28, 28, generator=generator)
    targets = torch.randint(10, (len(inputs),), generator=generator)
    return Batches(inputs, targets, batch_size, seed=0)


def _ours(
    make_model: Callable[[], nn.Module], batch_size: int, peers: Group | Alone
) -> Iterator[object]:
    model = make_model()
    optimizer = SGD(ParameterVector(model), **OPTIONS)
    # Two shards for two processes; for one the batch is whole, as it would be.
    shards = Shards(2 if peers.world_size == 2 else 1, 0, peers)
    options: dict[str, Any] = {"epochs": 10**6, "measure_every": 10**9}
    data = _data(batch_size)
    return train(model, optimizer, data, LOSS, shards=shards, **options)


def _ddp(
    make_model: Callable[[], nn.Module], batch_size: int, group: Group
) -> Iterator[None]:
    model = DistributedDataParallel(make_model())
    optimizer = torch.optim.SGD(model.parameters(), **OPTIONS, fused=True)
    while True:
        for inputs, targets in _data(batch_size).epoch(1):
            half = slice(group.rank, None, 2)
            optimizer.zero_grad()
            LOSS(model(inputs[half]), targets[half]).backward()
            optimizer.step()
            yield


def main() -> None:
    torch.set_num_threads(1)
    device = torch.device("cpu")
    with joined(Launch.of(), device, lambda: 0) as group:
        assert not isinstance(group, Single)
        found = measure(group, int(sys.argv[1]))
        if group.rank == 0:
            print(json.dumps(found))


if __name__ == "__main__":
    main()
