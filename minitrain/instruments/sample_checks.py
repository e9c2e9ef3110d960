"""What the samples alone tell, before a model has seen them.

A check gives a verdict with its kind, or nothing. Inputs are looked at where they are
one tensor of real numbers, targets where they are one number for each sample.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from minitrain.epochs import Batch
from minitrain.instruments import rules
from minitrain.instruments.bad_samples import find_bad_samples
from minitrain.instruments.neighbors import check_neighbors
from minitrain.samples import count, tensors_in

Told = tuple[str, str, str]
"""The kind of a finding, what was seen, and what to try."""


def check_finite(samples: Any) -> Told | None:
    """Tell which samples have numbers that are not finite."""
    if not (bad := find_bad_samples(samples)):
        return None
    return (
        rules.NOT_FINITE,
        f"{len(bad)} of {count(samples)} samples have numbers that are not finite, the "
        f"first is sample {bad[0]}.",
        "Remove such samples, or repair what they are made by.",
    )


def check_scale(mean: float, std: float) -> Told | None:
    """Tell of inputs far from unit size, which initial weights expect."""
    if not (math.isfinite(mean) and math.isfinite(std)):
        return None  # which is another fault
    if 0.2 <= std <= 5 and abs(mean) <= 2 * std:
        return None
    return (
        rules.NOT_NORMALIZED,
        f"the inputs have mean {mean:.3g} and standard deviation {std:.3g}.",
        "Bring them to mean 0 and standard deviation 1: (x - mean) / std.",
    )


def check_samples(batches: Sequence[Batch], num_in_all: int) -> Iterator[Told]:
    """Look at batches as they are trained on, all of them finite.

    Args:
        batches: Some of the first epoch, at equal distances or from its start.
        num_in_all: Samples of the whole data set.
    """
    inputs = [_only_tensor(inputs) for inputs, _ in batches]
    targets = [_only_tensor(targets) for _, targets in batches]
    x, y = _joined(inputs), _joined(targets)
    told = []
    if x is not None and x.is_floating_point() and x.dim() > 1:
        rows = x.flatten(1)
        told += [_check_constant(rows), _check_repeated(rows, y, num_in_all)]
        told += [check_scale(x.mean().item(), x.std().item())]
    if y is not None and y.is_floating_point():
        told += [_check_targets(y)]
    elif y is not None and y.dim() == 1:
        told += [_check_balance(y)]
    if y is not None and y.shape[1:].numel() == 1:
        told += [_check_order([each.flatten() for each in targets if each is not None])]
    yield from filter(None, told)


def check_labels(inputs: Any, targets: Any) -> Iterator[Told]:
    """Ask the neighbors of each sample, of samples in the order of the data set."""
    x, y = _only_tensor(inputs), _only_tensor(targets)
    if x is None or y is None or not x.is_floating_point() or x.dim() < 2:
        return
    if y.shape[1:].numel() == 1:
        yield from check_neighbors(x.flatten(1), y.flatten())


def _only_tensor(samples: Any) -> Tensor | None:
    """Return the tensor that the samples are, on the CPU, if they are a single one."""
    tensors = [*tensors_in(samples)]
    return tensors[0].cpu() if len(tensors) == 1 and tensors[0].dim() else None


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known) if len(known) == len(parts) else None


def _check_constant(rows: Tensor) -> Told | None:
    """Tell of inputs in which there is nothing: one number in all places, or 0."""
    if rows.shape[1] > 1:
        share = (rows == rows[:, :1]).all(dim=1).double().mean().item()
    else:
        share = (rows == 0).double().mean().item()
    if share < 0.02:
        return None
    return (
        rules.CONSTANT,
        f"{share:.0%} of the inputs hold one and the same number in all places.",
        "Look at what reads them: empty files or a wrong index look like that.",
    )


def _check_repeated(rows: Tensor, y: Tensor | None, num_in_all: int) -> Told | None:
    """Tell where samples are there more than once.

    Of n samples drawn from N, of which each has c copies, c n^2 / 2N pairs are equal.
    """
    columns = (
        rows if y is None else torch.cat([rows, y.reshape(len(y), -1).to(rows)], dim=1)
    )
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(columns.shape[1], generator=generator, dtype=torch.float64)
    varied = columns[(rows != rows[:, :1]).any(dim=1) | (rows.shape[1] == 1)]
    # Equal samples have equal products with any vector, and others hardly ever.
    _, counts = (varied.double() @ mix.to(rows.device)).unique(return_counts=True)
    pairs, n = (counts * (counts - 1)).sum().item() / 2, len(rows)
    copies = pairs * 2 * num_in_all / n**2
    if pairs < 5 or copies < 0.3:
        return None
    return (
        rules.REPEATED,
        f"of {n} samples {int(counts[counts > 1].sum())} are there more than once: "
        f"about {copies:.1g} copies of each in the data set.",
        "Keep each one once, and make sure that none is in the test set too.",
    )


def _check_balance(labels: Tensor) -> Told | None:
    """Tell where one class has more than the mean of an even share and all."""
    counts = torch.bincount(labels[labels >= 0].long())
    num_classes, share = int((counts > 0).sum()), (counts.max() / counts.sum()).item()
    if num_classes < 2 or share < (1 + 1 / num_classes) / 2:
        return None
    return (
        rules.IMBALANCED,
        f"{share:.0%} of the samples are of class {int(counts.argmax())}: guessing it "
        "is right as often.",
        "Look at the accuracy of each class; weigh or draw the classes evenly.",
    )


def _check_targets(targets: Tensor) -> Told | None:
    """Tell of real targets far from unit size, other than probabilities."""
    mean, std = targets.mean(dim=0), targets.std(dim=0)
    if targets.min() >= 0 and targets.max() <= 1:
        return None
    is_off = (mean.abs() > 10 * std) | (std > 1000) | (std < 1e-3)
    if not is_off.any():
        return None
    where = int(is_off.flatten().nonzero()[0])
    return (
        rules.TARGETS_OFF,
        f"the targets have mean {mean.flatten()[where]:.3g} and standard deviation "
        f"{std.flatten()[where]:.3g}.",
        "Bring them to mean 0 and standard deviation 1, and the predictions back.",
    )


def _check_order(batches: Sequence[Tensor]) -> Told | None:
    """Tell where batches hold less variety than the samples together.

    Of classes it is the probability that two samples differ, of real targets the
    variance; of a batch of B drawn samples it is (1 - 1/B) times the whole's.
    """
    sizes = [len(batch) for batch in batches]
    if len(batches) < 4 or min(sizes[:-1]) < 4:
        return None
    whole = _variety(torch.cat([*batches]))
    within = [
        _variety(batch) / (1 - 1 / len(batch)) for batch in batches if len(batch) > 1
    ]
    share = sum(within) / len(within) / whole if whole > 0 else 0.0
    if share > 0.6:
        return None
    text = f"a batch has {share:.0%} of the variety that the targets have in all"
    if whole == 0:
        text = f"the targets of the first {sum(sizes)} samples are all the same"
    return (
        rules.IN_ORDER,
        f"{text}: the samples come in the order of their targets.",
        "Shuffle them: a seed for Batches, or shuffle=True for a DataLoader.",
    )


def _variety(targets: Tensor) -> float:
    if targets.is_floating_point():
        return targets.double().var(correction=0).item()
    _, counts = targets.unique(return_counts=True)
    return 1 - (counts / len(targets)).square().sum().item()
