"""Models for images of shape (N, 1, 28, 28): plain modules that return logits."""

import itertools
from collections.abc import Sequence

from torch import Tensor, nn


class SoftmaxRegression(nn.Module):
    """Logits that are linear in the pixels, W x + b: the simplest classifier.

    7 850 parameters for 784 pixels and 10 classes. Its loss is convex.
    """

    def __init__(self, num_inputs: int = 784, num_classes: int = 10) -> None:
        super().__init__()
        self.linear = nn.Linear(num_inputs, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1))


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    101 770 parameters for 784 pixels, one hidden layer of 128 and 10 classes. Dropout,
    where there is any, follows each ReLU.
    """

    def __init__(
        self,
        num_inputs: int = 784,
        hidden: Sequence[int] = (128,),
        num_classes: int = 10,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = [num_inputs, *hidden]
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(widths):
            layers += [nn.Linear(width_in, width_out), nn.ReLU(), *_dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images.flatten(1))


class CNN(nn.Module):
    """Two convolutions with pooling, then two linear layers, after LeNet.

    Shapes: (1, 28, 28) -> (16, 14, 14) -> (32, 7, 7) -> 128 -> num_classes. 215 370
    parameters for 10 classes. Dropout, where there is any, precedes the last layer.

    Source: LeCun et al., Gradient-based learning applied to document recognition, 1998.
    """

    def __init__(self, num_classes: int = 10, dropout: float = 0.0) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=5, padding=2),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=5, padding=2),
            nn.MaxPool2d(2),
            nn.ReLU(),
        )
        self.head = nn.Sequential(
            nn.Linear(32 * 7 * 7, 128),
            nn.ReLU(),
            *_dropout(dropout),
            nn.Linear(128, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.convolutions(images).flatten(1))


def _dropout(probability: float) -> list[nn.Module]:
    """The layer, or none: without it the names of the layers are the usual ones."""
    return [nn.Dropout(probability)] if probability else []
