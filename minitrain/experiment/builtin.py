"""The data sets and the models that the built-in experiment knows by name."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from minitrain import models
from minitrain.datasets.cache import default_root
from minitrain.datasets.dataset import Dataset
from minitrain.datasets.digits import digits
from minitrain.datasets.mnist import fashion_mnist, mnist
from minitrain.experiment.settings import ModelSettings

LOADERS: dict[str, Callable[[Path], Dataset]] = {
    "mnist": mnist,
    "fashion-mnist": fashion_mnist,
    "digits": digits,
}


def load_data(name: str, root: Path | None = None) -> Dataset:
    """The data set of this name: mnist, fashion-mnist or digits.

    Raises DataError where it cannot be had.
    """
    return LOADERS[name](root or default_root())


def build_model(settings: ModelSettings) -> nn.Module:
    """The model of this name, with new random weights."""
    if settings.name == "softmax":
        return models.SoftmaxRegression()
    if settings.name == "mlp":
        return models.MLP(hidden=settings.hidden, dropout=settings.dropout)
    if settings.name == "cnn":
        return models.CNN(dropout=settings.dropout)
    return FastCNN()


class FastCNN(nn.Module):
    """As few operations as reach 99 % on MNIST in one epoch.

    The first filters move by three pixels, not by one, and what follows is small:
    208 128 multiplications for an image, where the CNN needs 3 024 384. To learn from
    few steps it needs a large learning rate, which batch normalization makes possible;
    of the hidden layer alone is enough. In training it takes at least two images, whose
    logits then depend on each other.

    Shapes: (1, 28, 28) -> (16, 8, 8) -> (16, 6, 6) -> 128 -> num_classes. 78 394
    parameters for 10 classes.

    Source: Ioffe and Szegedy, Batch normalization, 2015, for the normalization.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=7, stride=3),
            nn.ReLU(),
            nn.Conv2d(16, 16, kernel_size=3),
            nn.ReLU(),
        )
        self.head = nn.Sequential(
            nn.Linear(16 * 6 * 6, 128, bias=False),  # the normalization has one
            nn.BatchNorm1d(128),
            nn.ReLU(),
            nn.Linear(128, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.convolutions(images).flatten(1))
