"""Fixtures shared by all tests."""

import os
import random
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from harness.runs import keep_few_digits

from minitrain.system.signals import SIGNALS

# nohup and a shell's background have signals ignored, which programs would inherit.
for number in SIGNALS:
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)

# The tensors here are small: threads would wait for each other, not work together.
torch.set_num_threads(1)


@pytest.fixture
def rng() -> random.Random:
    """A new seed for every test run; a failed one is replayed by $MINITRAIN_SEED."""
    seed = os.environ.get("MINITRAIN_SEED") or secrets.token_hex(4)
    print(f"MINITRAIN_SEED={seed}")
    return random.Random(seed)


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """The folder with the real MNIST, named by $MINITRAIN_DATA.

    Without it the tests on MNIST are skipped, with the reason shown; where
    $MINITRAIN_REQUIRE_MNIST is set, as by `.ci/run`, they fail.
    """
    root = os.environ.get("MINITRAIN_DATA")
    if root and (Path(root) / "MNIST").is_dir():
        return Path(root)
    reason = "needs MNIST in the folder named by the variable MINITRAIN_DATA"
    if os.environ.get("MINITRAIN_REQUIRE_MNIST"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def few_digits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache whose `digits` are few, for this process and those that it starts."""
    root = tmp_path_factory.mktemp("data")
    keep_few_digits(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINITRAIN_DATA", str(root))
        yield
