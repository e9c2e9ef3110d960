"""The built-in experiment: images of digits or clothes, and four models of them.

It has the form of anybody's experiment file. All that is known of images, of their size
and number, stands here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from minitrain.system.errors import DataError
from minitrain.system.terminal import say

if TYPE_CHECKING:  # torch takes seconds: it is imported where work begins
    from torch import Tensor, nn

    from minitrain.datasets.dataset import Dataset
    from minitrain.experiment.data import Data

Share = Annotated[float, Field(ge=0, le=1)]
Width = Annotated[int, Field(ge=1, le=65_536)]

NUM_MISTAKES = 24
"""How many mistakes are shown."""


def data(
    name: Literal["auto", "mnist", "fashion-mnist", "digits"] = "auto",
    root: Path | None = None,
) -> Data:
    """Return images (1, 28, 28), normalized as (x - mean) / std, and their classes.

    Args:
        name: Data set. auto: MNIST, or else `digits`, drawn here, if MNIST cannot be
            had.
        root: Folder of the data sets; by default $MINITRAIN_DATA, or else a cache
            folder.
    """
    from minitrain.experiment.data import Data

    dataset = load_data(name, root)
    train, test = (
        (dataset.inputs(examples), examples.labels)
        for examples in (dataset.train, dataset.test)
    )
    return Data(train, test, classes=dataset.classes, name=dataset.name)


def load_data(name: str, root: Path | None = None) -> Dataset:
    """Return the data set of this name; `auto` is MNIST, or else the digits drawn here.

    Raises:
        DataError: It is not available.
    """
    from minitrain.datasets.cache import default_root
    from minitrain.datasets.digits import digits
    from minitrain.datasets.mnist import fashion_mnist, mnist

    root = root or default_root()
    sets = {"mnist": mnist, "fashion-mnist": fashion_mnist, "digits": digits}
    if name != "auto":
        return sets[name](root)
    try:
        return mnist(root)
    except DataError as error:
        line = "*" * 72
        say(
            f"{error}\n{line}\n"
            "MNIST is not available: training on `digits`, drawn here, in its place.\n"
            f"{line}"
        )
        return digits(root)


def model(
    name: Literal["softmax", "mlp", "cnn", "fast-cnn"] = "mlp",
    hidden: tuple[Width, ...] = (128,),
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
) -> nn.Module:
    """Return a model with new random weights, of images to logits (N, 10).

    Args:
        name: Softmax regression, a multilayer perceptron, or a convolutional network:
            the cnn is the most accurate, the fast-cnn nearly so in a tenth of the time.
        hidden: Width of each hidden layer of the mlp.
        dropout: Probability that a hidden unit is left out of a training step; mlp and
            cnn.
    """
    from minitrain import models
    from minitrain.experiment.fast_cnn import FastCNN

    if name == "softmax":
        return models.SoftmaxRegression()
    if name == "mlp":
        return models.MLP(hidden=hidden, dropout=dropout)
    if name == "cnn":
        return models.CNN(dropout=dropout)
    return FastCNN()


def loss(outputs: Tensor, targets: Tensor, label_smoothing: Share = 0.0) -> Tensor:
    """Return the cross-entropy of softmax(outputs) with the targets.

    Args:
        outputs: Logits.
        targets: Class numbers.
        label_smoothing: Share of each target that is spread evenly over all classes.
    """
    from torch.nn.functional import cross_entropy

    return cross_entropy(outputs, targets, label_smoothing=label_smoothing)


def draw(model: nn.Module, data: Data) -> dict[str, Any]:
    """Return pictures of the worst mistakes, and of what the first layer looks for."""
    from minitrain.evaluation import predict
    from minitrain.pictures import classes

    inputs, targets = data.test
    images = inputs[:, 0]
    mistakes = classes.worst_mistakes(predict(model, inputs), targets, NUM_MISTAKES)
    weights = next(model.parameters())
    assert data.classes is not None
    return {
        "mistakes/test": classes.draw_mistakes(images, mistakes, data.classes),
        "weights/first_layer": classes.draw_weights(weights, images.shape[1:]),
    }
