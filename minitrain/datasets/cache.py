"""Where data sets are kept, and how a copy is known to be whole."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import torch

from minitrain.datasets.dataset import Examples
from minitrain.fingerprint import fingerprint
from minitrain.system.files import replacing


def default_root() -> Path:
    """Where data sets are kept: $MINITRAIN_DATA, or a cache folder of the user."""
    if root := os.environ.get("MINITRAIN_DATA"):
        return Path(root)
    cache = os.environ.get("LOCALAPPDATA") or os.environ.get("XDG_CACHE_HOME")
    return Path(cache or Path.home() / ".cache") / "minitrain"


def cached(
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
