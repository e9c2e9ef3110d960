"""The fingerprint of a state, and every difference that it must show."""

import pytest
import torch

from minitrain.fingerprint import fingerprint


@pytest.mark.parametrize(
    "other",
    [
        {"w": torch.tensor([1.0, 2.0]), "n": [0.5, None]},
        {"w": torch.tensor([1.0, -0.0], dtype=torch.float64), "n": [0.5, None]},
        {"w": torch.tensor([[1.0, -0.0]]), "n": [0.5, None]},
        {"w": torch.tensor([1.0, 0.0]), "n": [0.5, None]},
        {"v": torch.tensor([1.0, -0.0]), "n": [0.5, None]},
        {"w": torch.tensor([1.0, -0.0]), "n": [0.5, 0.0]},
        {"w": torch.tensor([1.0, -0.0]), "n": [0.5]},
    ],
    ids=["value", "dtype", "shape", "sign of zero", "name", "number", "length"],
)
def test_fingerprint_sees_every_difference(other: dict) -> None:
    state = {"w": torch.tensor([1.0, -0.0]), "n": [0.5, None]}
    same = {"w": torch.tensor([[1.0], [-0.0]]).t()[0], "n": [0.5, None]}
    assert fingerprint(state) == fingerprint(same)
    assert fingerprint(state) != fingerprint(other)
