"""The built-in experiment: its data sets, models and pictures, and what they need.

All that is known of images, of their size and number, stands here.
"""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from minitrain import models
from minitrain.datasets.cache import default_root
from minitrain.datasets.dataset import Dataset
from minitrain.datasets.digits import digits
from minitrain.datasets.mnist import fashion_mnist, mnist
from minitrain.evaluation import confusion_matrix, predict
from minitrain.experiment.settings import ModelSettings
from minitrain.system.errors import DataError, SettingsError

LOADERS: dict[str, Callable[[Path], Dataset]] = {
    "mnist": mnist,
    "fashion-mnist": fashion_mnist,
    "digits": digits,
}

NUM_MISTAKES = 24
"""How many mistakes are shown."""


def load_data(name: str, root: Path | None = None) -> Dataset:
    """Return the data set of this name; `auto` is MNIST, or else the digits drawn here.

    Raises:
        DataError: It cannot be had.
    """
    root = root or default_root()
    if name != "auto":
        return LOADERS[name](root)
    try:
        return LOADERS["mnist"](root)
    except DataError as error:
        line = "*" * 72
        print(
            f"{error}\n{line}\n"
            "MNIST cannot be had: training on `digits`, drawn here, in its place.\n"
            f"{line}"
        )
        return LOADERS["digits"](root)


def build_model(settings: ModelSettings) -> nn.Module:
    """Return the model of this name, with new random weights.

    It takes images as `Dataset.inputs` gives them, (N, 1, 28, 28), to logits (N, 10).
    """
    if settings.name == "softmax":
        return models.SoftmaxRegression()
    if settings.name == "mlp":
        return models.MLP(hidden=settings.hidden, dropout=settings.dropout)
    if settings.name == "cnn":
        return models.CNN(dropout=settings.dropout)
    return FastCNN()


def check_batches(settings: ModelSettings, num_samples: int, batch_size: int) -> None:
    """Make sure that the model can be trained on each batch.

    Raises:
        SettingsError: It normalizes over a batch, and one has a single sample.
    """
    if settings.name == "fast-cnn" and 1 in (batch_size, num_samples % batch_size):
        raise SettingsError(
            f"data.batch-size = {batch_size}: the last batch of {num_samples} samples "
            "has a single one, and model.name = 'fast-cnn' normalizes over a batch: it "
            "needs two"
        )


def default_threads(settings: ModelSettings) -> int | None:
    """Return how many threads are best for the model; None is one for each core.

    Threads that wait for each other burn a core, and stall on a busy machine. The steps
    of the cnn alone are long enough to be shared.
    """
    return None if settings.name == "cnn" else 1


def draw_pictures(
    model: nn.Module, dataset: Dataset, inputs: Tensor
) -> dict[str, bytes]:
    """Return pictures of what the model confuses and what it looks for: PNG by tag.

    Args:
        model: The trained model.
        dataset: What it was trained on.
        inputs: The images of the test set, as the model takes them.
    """
    from minitrain.pictures import classes  # with matplotlib: no run needs it earlier

    logits, targets = predict(model, inputs), dataset.test.labels.to(inputs.device)
    mistakes = classes.worst_mistakes(logits, targets, NUM_MISTAKES)
    confusion = confusion_matrix(logits, targets)
    weights = next(model.parameters())
    return {
        "mistakes/test": classes.draw_mistakes(
            dataset.test.images, mistakes, dataset.classes
        ),
        "confusion/test": classes.draw_confusion(confusion, dataset.classes),
        "weights/first_layer": classes.draw_weights(
            weights, dataset.test.images.shape[1:]
        ),
    }


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
