"""What is learned in the runs: two networks on MNIST, and three small problems."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, scaled_dot_product_attention

import minitrain
from minitrain.experiment.builtin import load_data

USUAL = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
"""Options of the optimizer."""

LENGTH = 24
"""Characters in a sample of `language`."""


class Data(NamedTuple):
    """Samples to train on and to test on."""

    inputs: Tensor
    targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something to learn, with settings that learn it."""

    data: Callable[[], Data]
    model: Callable[[], nn.Module]
    loss_fn: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    num_classes: int | None = 10
    num_samples: int = 3200
    batch_size: int = 64
    epochs: int = 3
    optimizer: Mapping[str, float] = field(default_factory=lambda: USUAL)


@functools.cache
def images(name: str) -> Data:
    dataset = load_data(name)
    train, test = dataset.train, dataset.test
    return Data(
        dataset.inputs(train),
        train.labels,
        dataset.inputs(test)[:2000],
        test.labels[:2000],
    )


@functools.cache
def spirals() -> Data:
    """Two arms around the origin, the classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (8000,), generator=generator)
    turn = 0.25 + 1.25 * torch.rand(8000, generator=generator)
    angle = 2 * math.pi * turn + math.pi * labels
    points = turn[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    points += 0.05 * torch.randn(8000, 2, generator=generator)
    points /= points.std()
    return Data(points[:6400], labels[:6400], points[6400:], labels[6400:])


@functools.cache
def sine() -> Data:
    """A wave with some noise, to be followed."""
    generator = torch.Generator().manual_seed(0)
    x = 3.4 * torch.rand(8000, 1, generator=generator) - 1.7
    y = (3 * x).sin() + 0.1 * torch.randn(8000, 1, generator=generator)
    return Data(x[:6400], y[:6400], x[6400:], y[6400:])


@functools.cache
def language() -> Data:
    """Pieces of the package's own sources; the targets are the next characters."""
    folder = Path(minitrain.__file__).parent
    text = "".join(path.read_text() for path in sorted(folder.glob("**/*.py")))
    codes = torch.tensor([min(ord(character), 127) for character in text])
    pieces = codes[: len(codes) // (LENGTH + 1) * (LENGTH + 1)].view(-1, LENGTH + 1)
    generator = torch.Generator().manual_seed(0)
    pieces = pieces[torch.randperm(len(pieces), generator=generator)]
    inputs, targets = pieces[:, :-1], pieces[:, 1:]
    return Data(inputs[:-400], targets[:-400], inputs[-400:], targets[-400:])


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(),
        nn.Linear(64, 10),
    )  # fmt: skip


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(), nn.Flatten(), nn.Linear(400, 10),
    )  # fmt: skip


def softmax() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def spirals_mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)
    )


def sine_mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
    )


class Transformer(nn.Module):
    """One block of causal attention and a hidden layer, each with a way around it.

    Source: Vaswani et al., Attention is all you need, 2017.
    """

    def __init__(self, width: int = 32, num_heads: int = 2) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.letters = nn.Embedding(128, width)
        self.places = nn.Embedding(LENGTH, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.hidden = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
        )
        self.head = nn.Linear(width, 128)
        self.end: nn.Module = nn.Identity()

    def forward(self, letters: Tensor) -> Tensor:
        x = self.letters(letters) + self.places.weight
        x = x + self._attend(self.norm1(x))
        x = x + self.hidden(self.norm2(x))
        return self.end(self.head(x))

    def _attend(self, x: Tensor) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


def of_characters(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(outputs.mT, targets)


MNIST = functools.partial(images, "mnist")

PROBLEMS = {
    "mlp": Problem(data=MNIST, model=mlp),
    "cnn": Problem(data=MNIST, model=cnn, optimizer={**USUAL, "lr": 0.03}),
    "spirals": Problem(data=spirals, model=spirals_mlp, num_classes=2, epochs=5),
    "sine": Problem(
        data=sine,
        model=sine_mlp,
        loss_fn=mse_loss,
        num_classes=None,
        epochs=6,
        optimizer={**USUAL, "lr": 0.03},
    ),
    "language": Problem(
        data=language,
        model=Transformer,
        loss_fn=of_characters,
        num_classes=128,
        batch_size=32,
        epochs=2,
        optimizer={**USUAL, "lr": 0.1},
    ),
}
