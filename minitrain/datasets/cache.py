"""Where data sets are kept, and a copy of one that takes long to make."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from minitrain.datasets.dataset import Examples
from minitrain.fingerprint import fingerprint
from minitrain.system.errors import DataError
from minitrain.system.files import leftovers, open_regular, replacing


def default_root() -> Path:
    """Return where data sets are kept: $MINITRAIN_DATA, or the user's cache folder.

    Raises:
        DataError: Neither is known, as for a user without a home.
    """
    if root := os.environ.get("MINITRAIN_DATA"):
        return Path(root)
    if cache := os.environ.get("LOCALAPPDATA") or os.environ.get("XDG_CACHE_HOME"):
        return Path(cache) / "minitrain"
    try:
        return Path.home() / ".cache" / "minitrain"
    except RuntimeError:
        raise DataError(
            "there is no folder to keep data sets in: this user has no home. Name one "
            "by --data.root or by the variable MINITRAIN_DATA"
        ) from None


def read_or_make(
    path: Path,
    make: Callable[[], tuple[Examples, Examples]],
    is_right: Callable[[Examples, Examples], bool],
) -> tuple[Examples, Examples]:
    """Read training and test examples from a file, or make and, if possible, keep them.

    Args:
        path: The file. It carries the SHA-256 of its tensors; a damaged one, or one of
            another content, is made anew.
        make: Makes the examples.
        is_right: Says of examples of any types and shapes whether they can be those; it
            may raise any error instead.
    """
    try:
        with open_regular(path) as file:
            kept = torch.load(file, weights_only=True)
        sha256 = kept.pop("sha256")
        train = Examples(kept["train_images"], kept["train_labels"])
        test = Examples(kept["test_images"], kept["test_labels"])
        if fingerprint(kept) == sha256 and is_right(train, test):
            return train, test
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
    with suppress(OSError, RuntimeError):
        for part in leftovers(path.parent, path.name):
            part.unlink()  # whoever still writes it does without, as on a full disk
        with replacing(path) as file:
            torch.save({**tensors, "sha256": fingerprint(tensors)}, file)
    return train, test
