"""Whole processes: how long they take to start, and how much memory they need."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.compare import Row, compare, row

SCRIPTS = Path(__file__).parents[1]
TRAIN = str(SCRIPTS / "train.py")

FIRST_STEP = """
from minitrain.experiment import parts, runner
from minitrain.experiment import Config
train = parts.train
def first(*arguments, **options):
    next(train(*arguments, **options))
    raise SystemExit
parts.train = first
runner.run(Config())
"""
BARE = """
import torch
from minitrain.experiment import builtin
torch.set_num_threads(1)
mnist = builtin.load_data("mnist")
inputs, labels = mnist.inputs(mnist.train), mnist.train.labels
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 128),
                            torch.nn.ReLU(), torch.nn.Linear(128, 10))
options = dict(lr=0.05, momentum=0.9, weight_decay=5e-4, fused=True)
optimizer = torch.optim.SGD(model.parameters(), **options)
for indices in torch.randperm(len(inputs)).split(64):
    optimizer.zero_grad()
    outputs = model(inputs[indices])
    torch.nn.functional.cross_entropy(outputs, labels[indices]).backward()
    optimizer.step()
"""


def _run(*words: str) -> None:
    """Run Python to its end, which may be that of a wrong setting."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=folder,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(SCRIPTS.parent)},
        )
    if done.returncode not in (0, 2):
        raise RuntimeError(done.stderr)


def start_rows(rounds: int) -> Iterator[Row]:
    """Seconds of whole processes, each in turn with one that only imports torch."""
    for name, words in {
        "import minitrain": ("-c", "import minitrain"),
        "train.py --help": (TRAIN, "--help"),
        "a wrong setting": (TRAIN, "--epochs", "0"),
        "to the first step": ("-c", FIRST_STEP),
        "mnist-99.toml, whole": (
            TRAIN,
            str(SCRIPTS.parent / "experiments" / "mnist-99.toml"),
        ),
    }.items():

        def ours(words: tuple[str, ...] = words) -> None:
            _run(*words)

        yield compare(
            name, ours, "import torch", lambda: _run("-c", "import torch"), rounds
        )


def memory_rows(rounds: int) -> Iterator[Row]:
    """Peak resident memory, in GB for seconds: an epoch of the default run and bare."""
    sides = {
        "ours": (TRAIN, "--epochs", "1"),
        "bare": ("-c", BARE),
    }
    peaks: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, words in sides.items():
            peaks[name].append(_peak(*words))
    found = row("peak memory, default run", peaks["ours"], "bare loop", peaks["bare"])
    yield found._replace(note="GB, not seconds")


def _peak(*words: str) -> float:
    """The largest resident set of a process, in GB, as the kernel counts it."""
    code = (
        "import os, resource, subprocess, sys\n"
        "subprocess.run([sys.executable, *sys.argv[1:]], capture_output=True)\n"
        "print('peak', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            cwd=folder,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(SCRIPTS.parent)},
            check=True,
        )
    return int(re.findall(r"peak (\d+)", done.stdout)[0]) / 1e6
