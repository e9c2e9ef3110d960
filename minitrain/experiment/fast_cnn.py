"""A convolutional network that is fast and still right 99 times in 100."""

from torch import Tensor, nn


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
