"""A small network, and data of its shape."""

import torch
from torch import Tensor, nn


def tensors(num: int = 23) -> tuple[Tensor, Tensor]:
    """Inputs (num, 6), and as targets one of four classes, (num,)."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(num, 6, generator=generator)
    return inputs, torch.randint(4, (num,), generator=generator)


def network(dropout: float = 0.0) -> nn.Sequential:
    """From (N, 6) to (N, 4), with the same weights at each call."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(6, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 4)
    )


class Centered(nn.Module):
    """Subtracts a running mean of its inputs, (N, 5), which each pass binds anew.

    A second buffer has no value before the first pass.
    """

    mean: Tensor
    num_passes: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(5, 3)
        self.register_buffer("mean", torch.zeros(5))
        self.register_buffer("num_passes", None)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * inputs.mean(0)
            so_far = 0 if self.num_passes is None else self.num_passes
            self.num_passes = torch.tensor(1) + so_far
        return self.linear(inputs - self.mean)
