"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest
import torch

# The tensors here are small: threads would wait for each other, not work together.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """The folder with the real MNIST, named by $MINITRAIN_DATA.

    Without it the tests on MNIST are skipped, with the reason shown; where
    $MINITRAIN_REQUIRE_MNIST is set, as in the checks of every submission, they fail.
    """
    root = os.environ.get("MINITRAIN_DATA")
    if root and (Path(root) / "MNIST").is_dir():
        return Path(root)
    reason = "needs MNIST in the folder named by the variable MINITRAIN_DATA"
    if os.environ.get("MINITRAIN_REQUIRE_MNIST"):
        pytest.fail(reason)
    pytest.skip(reason)
