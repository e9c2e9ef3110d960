"""The drawn digits: made from the seed alone, balanced, inside the frame, learnable."""

from pathlib import Path

import pytest
import torch
from harness.small_sets import equal, random_examples
from torch import Tensor

from minitrain.datasets import digits
from minitrain.datasets.dataset import Examples
from minitrain.datasets.digits import draw_digits


@pytest.fixture(scope="module")
def drawn() -> tuple[Tensor, Tensor]:
    return draw_digits(2005, seed=0)  # two chunks, the second one short


def test_shapes_and_types(drawn: tuple[Tensor, Tensor]):
    images, labels = drawn
    assert images.shape == (2005, 28, 28) and images.dtype == torch.uint8
    assert labels.shape == (2005,) and labels.dtype == torch.int64


@pytest.mark.parametrize("num_threads", [1, 2])
def test_same_seed_same_bits(drawn: tuple[Tensor, Tensor], num_threads: int):
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        images, labels = draw_digits(2005, seed=0)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(images, drawn[0]) and torch.equal(labels, drawn[1])


def test_another_seed_other_images(drawn: tuple[Tensor, Tensor]):
    images, labels = draw_digits(2005, seed=1)
    assert not torch.equal(labels, drawn[1])
    assert len(torch.cat([images, drawn[0]]).unique(dim=0)) == 4010  # no image twice


def test_global_random_state_is_neither_read_nor_changed(
    drawn: tuple[Tensor, Tensor],
):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        before = torch.get_rng_state()
        images, _ = draw_digits(2005, seed=0)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(images, drawn[0])


@pytest.mark.parametrize("num_images", [1, 9, 10, 1001])
def test_classes_are_balanced_in_random_order(num_images: int):
    _, labels = draw_digits(num_images, seed=0)
    counts = labels.bincount(minlength=10)
    assert counts.sum() == num_images and len(counts) == 10
    assert counts.max() - counts.min() <= 1
    if num_images > 1:
        assert not torch.equal(labels, torch.arange(num_images) % 10)


@pytest.mark.parametrize("num_images", [0, -3])
def test_too_few_images_are_refused(num_images: int):
    with pytest.raises(ValueError, match=f"at least 1, got {num_images}"):
        draw_digits(num_images, seed=0)


def test_strokes_are_white_on_black_inside_the_frame(drawn: tuple[Tensor, Tensor]):
    images, _ = drawn
    border = torch.ones(28, 28, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert (images[:, border] > 0).float().mean() < 0.002
    assert (images == 0).float().mean() > 0.7
    inked = (images > 127).flatten(1).sum(dim=1)
    assert inked.min() > 0 and inked.max() < 28 * 28 / 2  # no blank, no blot


def test_digits_vary_yet_can_be_told_apart(drawn: tuple[Tensor, Tensor]):
    """The nearest class mean, the simplest classifier, is often right, not always."""
    images, labels = drawn
    means = torch.stack(
        [images[labels == digit].float().mean(0) for digit in range(10)]
    )
    unseen, targets = draw_digits(1000, seed=1)
    nearest = torch.cdist(unseen.float().flatten(1), means.flatten(1)).argmin(dim=1)
    accuracy = (nearest == targets).float().mean().item()
    assert 0.4 < accuracy < 0.97  # chance is 0.1; MNIST's figure is 0.82


# The data set, and its cache


def test_digits_are_drawn_once_and_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = (
        Examples(*draw_digits(200, seed=0)),
        Examples(*draw_digits(50, seed=1)),
    )
    dataset = digits.digits(tmp_path, 200, 50)
    assert dataset.name == "digits" and dataset.classes == tuple("0123456789")
    assert equal(dataset, expected)
    monkeypatch.setattr(
        digits, "draw_digits", lambda *a, **k: pytest.fail("drawn again")
    )
    assert equal(digits.digits(tmp_path, 200, 50), expected)


def test_digits_of_other_numbers_have_a_cache_of_their_own(
    tmp_path: Path, quick_digits: None
):
    digits.digits(tmp_path, 20, 10)
    expected = random_examples(10, seed=0), random_examples(20, seed=1)
    assert equal(digits.digits(tmp_path, 10, 20), expected)
