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
