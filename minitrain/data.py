"""Data sets that live in memory as tensors, verified."""

import contextlib
import functools
import gzip
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from minitrain.digits import VERSION, draw_digits
from minitrain.download import fetch
from minitrain.errors import DataError
from minitrain.fingerprint import fingerprint
from minitrain.storage import replacing


class Examples(NamedTuple):
    """Images, (N, 28, 28) uint8 from 0 (black) to 255, and labels, (N,) int64."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Dataset:
    """Examples to train on, others to test on, and the names of the classes."""

    name: str
    classes: tuple[str, ...]
    train: Examples
    test: Examples

    @functools.cached_property
    def mean_std(self) -> tuple[float, float]:
        """Mean and standard deviation of all pixels of the training images.

        From exact counts of the 256 values, so that they are the same on every machine.
        """
        counts = torch.bincount(self.train.images.flatten(), minlength=256).double()
        values = torch.arange(256, dtype=torch.float64)
        mean = (counts @ values / counts.sum()).item()
        variance = (counts @ (values - mean) ** 2 / counts.sum()).item()
        return mean, math.sqrt(variance)

    def inputs(self, examples: Examples, device: torch.device | str = "cpu") -> Tensor:
        """The images for a model: (x - mean) / std, shape (N, 1, 28, 28), float32."""
        mean, std = self.mean_std
        images = examples.images.to(device, torch.float32)
        return images.sub_(mean).div_(std).unsqueeze(1)


def load(name: str, root: Path | None = None) -> Dataset:
    """The data set of this name: mnist, fashion-mnist or digits.

    Raises DataError where it cannot be had.
    """
    return LOADERS[name](root or default_root())


def default_root() -> Path:
    """Where data sets are kept: $MINITRAIN_DATA, or a cache folder of the user."""
    if root := os.environ.get("MINITRAIN_DATA"):
        return Path(root)
    cache = os.environ.get("LOCALAPPDATA") or os.environ.get("XDG_CACHE_HOME")
    return Path(cache or Path.home() / ".cache") / "minitrain"


def mnist(root: Path) -> Dataset:
    """MNIST: 60 000 + 10 000 handwritten digits (LeCun, Cortes and Burges, 1998).

    Raises DataError where its files are damaged, or absent and not to be downloaded.
    """
    return _idx_dataset("mnist", "MNIST", root)


def fashion_mnist(root: Path) -> Dataset:
    """Fashion-MNIST: 60 000 + 10 000 pieces of clothing (Xiao et al., 2017).

    Raises DataError where its files are damaged, or absent and not to be downloaded.
    """
    return _idx_dataset("fashion-mnist", "FashionMNIST", root)


def digits(root: Path, num_train: int = 60_000, num_test: int = 10_000) -> Dataset:
    """Digits drawn from the seed, for machines that have no data and no network."""

    def draw() -> tuple[Examples, Examples]:
        train, test = draw_digits(num_train, seed=0), draw_digits(num_test, seed=1)
        return Examples(*train), Examples(*test)

    path = root / "minitrain" / f"digits-{num_train}-{num_test}-v{VERSION}.pt"
    return Dataset("digits", tuple("0123456789"), *_cached(path, draw))


LOADERS: dict[str, Callable[[Path], Dataset]] = {
    "mnist": mnist,
    "fashion-mnist": fashion_mnist,
    "digits": digits,
}

# The four files of a data set, by torchvision's name of it: fact, not trust.
SHA256 = {
    "MNIST": {
        "train-images-idx3-ubyte.gz": (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
        ),
        "train-labels-idx1-ubyte.gz": (
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
        ),
        "t10k-images-idx3-ubyte.gz": (
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
        ),
        "t10k-labels-idx1-ubyte.gz": (
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
        ),
    },
    "FashionMNIST": {
        "train-images-idx3-ubyte.gz": (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
        ),
        "train-labels-idx1-ubyte.gz": (
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
        ),
        "t10k-images-idx3-ubyte.gz": (
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
        ),
        "t10k-labels-idx1-ubyte.gz": (
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
        ),
    },
}

CLASSES = {
    "MNIST": tuple("0123456789"),
    "FashionMNIST": (
        "T-shirt",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "boot",
    ),
}


def _idx_dataset(name: str, source: str, root: Path) -> Dataset:
    def decode() -> tuple[Examples, Examples]:
        import torchvision  # more than a second: only where a set is read anew

        reader = getattr(torchvision.datasets, source)
        folder = root / source / "raw"
        for file, sha256 in SHA256[source].items():
            try:
                fetch(folder / file, sha256, [url + file for url in reader.mirrors])
            except DataError as error:
                files = ", ".join(SHA256[source])
                message = f"{error}\n{source} needs these files in {folder}: {files}"
                raise DataError(message) from None
        # torchvision trusts any unpacked file it finds. It is given a folder that holds
        # nothing but what was just unpacked from the verified files.
        with tempfile.TemporaryDirectory() as fresh:
            raw = Path(fresh) / source / "raw"
            raw.mkdir(parents=True)
            for file in SHA256[source]:
                (raw / file).with_suffix("").write_bytes(
                    gzip.decompress((folder / file).read_bytes())
                )
            train, test = reader(fresh, train=True), reader(fresh, train=False)
        return Examples(train.data, train.targets), Examples(test.data, test.targets)

    path = root / "minitrain" / f"{name}.pt"
    return Dataset(name, CLASSES[source], *_cached(path, decode))


def _cached(
    path: Path, make: Callable[[], tuple[Examples, Examples]]
) -> tuple[Examples, Examples]:
    """Training and test examples from the file, or made and, if possible, kept there.

    The file carries the SHA-256 of its tensors; a damaged one is made anew.
    """
    try:
        kept = torch.load(path, weights_only=True)
        sha256 = kept.pop("sha256")
        if fingerprint(kept) == sha256:
            return (
                Examples(kept["train_images"], kept["train_labels"]),
                Examples(kept["test_images"], kept["test_labels"]),
            )
    except Exception:  # absent, or damaged in one of many ways: make it anew
        pass
    train, test = make()
    tensors = {
        "train_images": train.images,
        "train_labels": train.labels,
        "test_images": test.images,
        "test_labels": test.labels,
    }
    # A folder that is read-only or full will do: the set is made anew every time.
    # Where writing fails, torch.save raises a RuntimeError of its own.
    with contextlib.suppress(OSError, RuntimeError), replacing(path) as file:
        torch.save({**tensors, "sha256": fingerprint(tensors)}, file)
    return train, test
