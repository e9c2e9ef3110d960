"""What the tests of whole runs share: little data, and eyes that are not the run's."""

import hashlib
import io
import re
import subprocess
import sys
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from minitrain.datasets import digits

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"


def keep_few_digits(root: Path) -> None:
    """Put a cache there whose `digits` are few: ten batches of 64 are an epoch."""
    digits.digits(root, num_train=640, num_test=200)
    (file,) = (root / "minitrain").iterdir()
    file.rename(file.with_name(f"digits-60000-10000-v{digits.VERSION}.pt"))


def points(folder: Path) -> dict[tuple[str, int], float]:
    """Every point of every curve, each there once; how fast it was does not count."""
    events = EventAccumulator(str(folder), {"scalars": 0}).Reload()
    tags = events.Tags()["scalars"]
    found = [((t, e.step), e.value) for t in tags for e in events.Scalars(t)]
    assert len(found) == len(dict(found))
    texts = {tag: len(events.Tensors(tag)) for tag in events.Tags()["tensors"]}
    assert len(texts) >= 4 and set(texts.values()) == {1}, "of the first start alone"
    timed = ("throughput/", "cost/")
    return {k: 0.0 if k[0].startswith(timed) else v for k, v in found}


def verified(folder: Path) -> set[int]:
    """The steps in a folder, after an inspection that uses no code of minitrain."""
    steps = set()
    for path in folder.glob("[!.]*"):
        match = re.fullmatch(r"step-(\d{8})\.([0-9a-f]{64})\.pt", path.name)
        data = path.read_bytes()
        assert match and match[2] == hashlib.sha256(data).hexdigest(), path
        state = torch.load(io.BytesIO(data), weights_only=True)
        assert state["step"] == int(match[1])
        steps.add(state["step"])
    return steps


PANEL = {"look": 1, "audit": 2, "truth": 5, "noise": 4}
"""How often the panel reads, in steps: left open, it would depend on the clock."""


def command(*flags: object) -> list[str]:
    """The program itself, on few digits."""
    panel = [f"--instruments.{kind}={every}" for kind, every in PANEL.items()]
    words = [sys.executable, str(SCRIPT), "--data.name", "digits", *panel]
    return [*words, *map(str, flags)]


def start(*flags: object, **options) -> subprocess.Popen:
    """Start the program, by default with pipes to read what it says."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command(*flags), **{**pipes, **options})
