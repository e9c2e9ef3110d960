"""The fingerprint of a training: one number that every bit of its state is part of."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def fingerprint(*states: Mapping[str, Any]) -> str:
    """Return the SHA-256 of nested state dicts.

    Of states with the same keys and shapes it is the same only if every bit is.

    >>> a = fingerprint({"weight": torch.zeros(2)})
    >>> a == fingerprint({"weight": torch.zeros(2)})
    True
    >>> a == fingerprint({"weight": torch.tensor([0.0, 1e-45])})
    False
    """
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            value = value.detach().cpu().contiguous()
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy())
        elif isinstance(value, Mapping):
            for key, item in value.items():
                digest.update(f"{key!r}:".encode())
                add(item)
        elif isinstance(value, list | tuple):
            digest.update(f"{len(value)}".encode())
            for item in value:
                add(item)
        else:
            digest.update(f"{value!r};".encode())

    for state in states:
        add(state)
    return digest.hexdigest()
