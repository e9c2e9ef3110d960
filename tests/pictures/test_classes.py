"""Pictures of a classifier: they show the numbers that they are given."""

import math

import pytest
import torch
from numpy.testing import assert_array_equal
from torch import nn

from minitrain.pictures import classes
from minitrain.pictures.classes import Mistake, worst_mistakes
from minitrain.pictures.png import png


@pytest.mark.parametrize(("height", "width"), [(28, 28), (5, 7)])
def test_weights_of_a_linear_layer_have_the_form_of_its_images(height: int, width: int):
    weights = nn.Linear(height * width, 12).weight
    figure = classes.draw_weights(weights, (height, width))
    images = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert len(images) == 12
    for row, image in zip(weights.detach(), images, strict=True):
        assert_array_equal(image, row.reshape(height, width))


def test_every_channel_of_a_convolution_is_an_image():
    weights = nn.Conv2d(3, 4, kernel_size=(2, 5)).weight
    figure = classes.draw_weights(weights, (28, 28))
    images = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert len(images) == 12
    assert_array_equal(images[4], weights.detach()[1, 1])


def test_at_most_forty_units_are_drawn():
    figure = classes.draw_weights(torch.randn(128, 6), (2, 3))
    assert sum(bool(axes.images) for axes in figure.axes) == 40


def test_confusion_shows_every_count_and_colors_the_errors():
    counts = torch.tensor([[8, 2, 0], [0, 5, 5], [0, 0, 0]])
    (axes,) = classes.draw_confusion(counts, ["a", "b", "c"]).axes
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert written == {(0, 0): "8", (1, 0): "2", (1, 1): "5", (2, 1): "5"}
    shares = [[0, 0.2, 0], [0, 0, 0.5], [0, 0, 0]]
    assert_array_equal(axes.images[0].get_array(), shares)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "c"]


def test_mistakes_are_told_by_name():
    images = torch.arange(6, dtype=torch.uint8).view(2, 3, 1).expand(2, 3, 4)
    mistakes = [Mistake(1, 0, 2, 0.987), Mistake(0, 2, 1, 0.5)]
    (axes,) = classes.draw_mistakes(images, mistakes, ["cat", "dog", "bird"]).axes
    assert_array_equal(axes.images[0].get_array(), images[1])
    texts = [text.get_text() for text in axes.texts]
    assert texts[0] == "cat, not bird\n(98.7% sure)"
    assert texts[1] == "bird, not dog\n(50.0% sure)"


def test_what_is_read_is_large_enough_for_a_thumbnail():
    """At a width of 200 pixels letters are at least five pixels high."""
    names = ["T-shirt", "Trouser", "Ankle boot"] + [str(i) for i in range(7)]
    mistakes = [Mistake(0, 2, 0, 0.987)] * 24
    confusion = classes.draw_confusion(1000 * torch.eye(10, dtype=torch.long), names)
    for figure in (
        confusion,
        classes.draw_mistakes(torch.zeros(1, 2, 2), mistakes, names),
    ):
        width = figure.get_size_inches()[0]
        sizes = [float(text.get_fontsize()) for text in figure.axes[0].texts]
        assert min(sizes) / 72 / width * 200 > 5


def test_pictures_become_png_files():
    for figure in (
        classes.draw_weights(torch.zeros(1, 6), (2, 3)),
        classes.draw_confusion(torch.eye(2, dtype=torch.long), ["a", "b"]),
        classes.draw_mistakes(torch.zeros(1, 2, 2), [], ["a"]),
    ):
        assert png(figure).startswith(b"\x89PNG") and figure._repr_png_()


def test_worst_mistakes_are_wrong_and_sorted() -> None:
    torch.manual_seed(0)
    logits, targets = 3 * torch.randn(200, 5), torch.randint(5, (200,))
    mistakes = worst_mistakes(logits, targets, num=20)
    assert len(mistakes) == 20
    wrong = {
        i: max(math.exp(x) for x in row) / sum(math.exp(x) for x in row)
        for i, row in enumerate(logits.tolist())
        if row.index(max(row)) != targets[i]
    }
    expected = sorted(wrong, key=lambda i: -wrong[i])[:20]
    assert [m.sample for m in mistakes] == expected
    for m in mistakes:
        assert m.target == targets[m.sample] and m.target != m.predicted
        assert m.probability == pytest.approx(wrong[m.sample], rel=1e-5)
    assert worst_mistakes(torch.eye(3), torch.arange(3), num=5) == []
