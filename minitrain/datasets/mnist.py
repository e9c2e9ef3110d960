"""MNIST and Fashion-MNIST: verified, and downloaded where they are absent."""

import gzip
import tempfile
from pathlib import Path

from minitrain.datasets.cache import cached
from minitrain.datasets.dataset import Dataset, Examples
from minitrain.datasets.download import fetch
from minitrain.system.errors import DataError


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
    return Dataset(name, CLASSES[source], *cached(path, decode))
