"""MNIST and Fashion-MNIST: verified, and downloaded where they are absent."""

import gzip
import struct
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from minitrain.datasets.dataset import Dataset, Examples
from minitrain.datasets.download import fetch
from minitrain.system.errors import DataError


def mnist(root: Path) -> Dataset:
    """Read MNIST: 60 000 + 10 000 handwritten digits.

    Args:
        root: The folder with the folder MNIST/raw, as torchvision has it.

    Raises:
        DataError: Its files are damaged, or absent and not to be downloaded.

    Source: LeCun, Cortes and Burges, The MNIST database, 1998.
    """
    return _idx_dataset("mnist", "MNIST", root)


def fashion_mnist(root: Path) -> Dataset:
    """Read Fashion-MNIST: 60 000 + 10 000 pieces of clothing.

    Args:
        root: The folder with the folder FashionMNIST/raw, as torchvision has it.

    Raises:
        DataError: Its files are damaged, or absent and not to be downloaded.

    Source: Xiao et al., Fashion-MNIST, 2017.
    """
    return _idx_dataset("fashion-mnist", "FashionMNIST", root)


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
"""The files of a data set, by torchvision's name of it: what they are, in this order.

They are read and verified each time: in a quarter of a second they are unpacked, and
no copy of what they hold has to be trusted."""


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
    """Read a data set of four files, each of them exactly the published one."""
    folder = root / source / "raw"

    def read(file: str) -> Tensor:
        try:
            packed = fetch(folder / file, SHA256[source][file], _urls(source, file))
        except DataError as error:
            files = ", ".join(SHA256[source])
            message = f"{error}\n{source} needs these files in {folder}: {files}"
            raise DataError(message) from None
        return _decode(packed)

    images, labels, test_images, test_labels = map(read, SHA256[source])
    train = Examples(images, labels.long())
    test = Examples(test_images, test_labels.long())
    return Dataset(name, CLASSES[source], train, test)


def _urls(source: str, file: str) -> Iterator[str]:
    """Yield the addresses of a file that torchvision knows."""
    import torchvision  # takes more than a second: only where a file is absent

    for mirror in getattr(torchvision.datasets, source).mirrors:
        yield mirror + file


def _decode(packed: bytes) -> Tensor:
    """Unpack a file of the IDX format: sizes after a magic number, then bytes.

    The last byte of the magic number says how many sizes there are. torchvision reads
    the format, too, but from any unpacked file that it finds, without asking which.
    """
    content = bytearray(gzip.decompress(packed))
    num_dims = content[3]
    shape = struct.unpack_from(f">{num_dims}I", content, offset=4)
    values = torch.frombuffer(content, dtype=torch.uint8, offset=4 + 4 * num_dims)
    return values.view(shape)
