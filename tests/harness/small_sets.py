"""Small data sets, in memory and in files, for the tests of data sets."""

import dataclasses
import gzip
import hashlib
import itertools
import struct
from pathlib import Path

import numpy
import torch
from torch import Tensor

from minitrain.datasets import mnist
from minitrain.datasets.dataset import Dataset, Examples

FILES = list(mnist.SHA256["MNIST"])


def random_examples(num: int, seed: int) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (num, 28, 28), generator=generator, dtype=torch.uint8)
    return Examples(images, torch.randint(10, (num,), generator=generator))


def write_idx(path: Path, values: Tensor) -> None:
    header = struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape)
    path.write_bytes(gzip.compress(header + values.to(torch.uint8).numpy().tobytes()))


def read_idx(path: Path) -> Tensor:
    content = gzip.decompress(path.read_bytes())
    magic = 0x800 + content[3]
    found, *shape = struct.unpack_from(f">{1 + content[3]}I", content)
    assert found == magic
    values = numpy.frombuffer(content, numpy.uint8, offset=4 + 4 * len(shape))
    return torch.tensor(values).view(shape)


def read_folder(folder: Path) -> tuple[Examples, Examples]:
    """Training and test examples, read independently of the module under test."""
    tensors = [read_idx(folder / file) for file in FILES]
    return Examples(tensors[0], tensors[1].long()), Examples(
        tensors[2], tensors[3].long()
    )


def equal(dataset: Dataset, expected: tuple[Examples, Examples]) -> bool:
    tensors = [*dataset.train, *dataset.test]
    return all(
        torch.equal(mine, theirs) and mine.dtype == theirs.dtype
        for mine, theirs in zip(tensors, itertools.chain(*expected), strict=True)
    )


@dataclasses.dataclass
class Small:
    """A small data set in the place of a real one, in files of the same form."""

    root: Path
    source: str = "MNIST"

    def __post_init__(self) -> None:
        self.raw = self.root / self.source / "raw"
        self.raw.mkdir(parents=True)
        self.examples = random_examples(6, seed=0), random_examples(4, seed=1)
        for file, values in zip(FILES, itertools.chain(*self.examples), strict=True):
            write_idx(self.raw / file, values)

    def sha256(self) -> dict[str, str]:
        return {
            f: hashlib.sha256((self.raw / f).read_bytes()).hexdigest() for f in FILES
        }
