"""A data set in memory: examples to train and to test on."""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


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
        """The mean and the standard deviation of all pixels of the training images.

        They come from exact counts of the 256 values, so that they are the same on
        every machine.
        """
        counts = torch.bincount(self.train.images.flatten(), minlength=256).double()
        values = torch.arange(256, dtype=torch.float64)
        mean = (counts @ values / counts.sum()).item()
        variance = (counts @ (values - mean) ** 2 / counts.sum()).item()
        return mean, math.sqrt(variance)

    def inputs(self, examples: Examples, device: torch.device | str = "cpu") -> Tensor:
        """Return images as a model takes them, (x - mean) / std.

        Args:
            examples: Of this data set.
            device: Where the result lies.

        Returns:
            The images, shape (N, 1, 28, 28), float32.
        """
        mean, std = self.mean_std
        images = examples.images.to(device, torch.float32)
        return images.sub_(mean).div_(std).unsqueeze(1)
