"""Small data sets in the place of real ones."""

from pathlib import Path

import pytest
import torchvision
from harness.small_sets import Small, random_examples

from minitrain.datasets import digits, mnist

NOWHERE = "http://127.0.0.1:1/"  # nothing listens at port 1


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    small = Small(tmp_path / "data")
    monkeypatch.setitem(mnist.SHA256, "MNIST", small.sha256())
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [NOWHERE])
    return small


@pytest.fixture
def quick_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other images in the place of digits, which take a second to draw."""
    monkeypatch.setattr(digits, "draw_digits", random_examples)
