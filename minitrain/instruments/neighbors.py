"""What a sample's nearest neighbors say of its target.

Where targets belong to inputs, samples that look alike mostly have like targets. Of
many tasks that is not so, or not by plain distances: then nothing is said.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from minitrain.instruments import rules

NUM_SAMPLES, NUM_NEIGHBORS, NUM_FEATURES = 2000, 5, 128


def check_neighbors(x: Tensor, y: Tensor) -> Iterator[tuple[str, str, str]]:
    """Tell of targets that belong to the sample before or after, or to none.

    Args:
        x: Inputs in the order of the data set, shape (N, features).
        y: Class numbers or real targets, shape (N,).
    """
    x, y = x[:NUM_SAMPLES], y[:NUM_SAMPLES]
    if len(x) < 100:
        return
    nearest = find_neighbors(x)
    own = agreement(nearest, y)
    for places in (1, -1, 2, -2):
        shifted = agreement(nearest, y.roll(places))
        if shifted > 0.4 and shifted > own + 0.3:
            where = "after" if places < 0 else "before"
            yield (
                rules.SHIFTED,
                f"the neighbors of a sample agree with the target {abs(places)} place "
                f"{where} its own ({shifted:.0%}), and not with its own ({own:.0%}).",
                "Look where inputs and targets are paired: one of them is shifted.",
            )
            return
    if not y.is_floating_point():
        yield from _check_classes(nearest, y)


def find_neighbors(x: Tensor) -> Tensor:
    """Return the numbers of the nearest other samples, shape (N, NUM_NEIGHBORS).

    Many features are first mixed into fewer, which keeps distances about as they are.

    Source: Johnson and Lindenstrauss, Extensions of Lipschitz mappings, 1984.
    """
    if x.shape[1] > NUM_FEATURES:
        generator = torch.Generator().manual_seed(0)
        mix = torch.randn(x.shape[1], NUM_FEATURES, generator=generator)
        x = x @ mix.to(x)
    distances = torch.cdist(x, x)
    distances.fill_diagonal_(torch.inf)
    return distances.topk(NUM_NEIGHBORS, largest=False).indices


def agreement(nearest: Tensor, y: Tensor) -> float:
    """Return how far neighbors predict the targets: 0 is chance, 1 always.

    Of classes it is the share of neighbors of the same class, above that of chance; of
    real targets the share of the variance that the neighbors' mean explains.
    """
    if y.is_floating_point():
        rest = (y[nearest].mean(dim=1) - y).square().mean()
        return (1 - rest / y.var(correction=0)).item()
    same = (y[nearest] == y[:, None]).double().mean().item()
    _, counts = y.unique(return_counts=True)
    chance = (counts.double() / len(y)).square().sum().item()
    return (same - chance) / (1 - chance) if chance < 1 else 0.0


def _check_classes(nearest: Tensor, y: Tensor) -> Iterator[tuple[str, str, str]]:
    """Tell of a class whose samples the neighbors contradict, as no other's."""
    same = (y[nearest] == y[:, None]).double().mean(dim=1)
    classes, counts = y.unique(return_counts=True)
    shares = torch.stack([same[y == each].mean() for each in classes])
    usual, worst = shares.median().item(), int(shares.argmin())
    if len(classes) < 3 or counts[worst] < 20 or usual < 0.6:
        return
    if shares[worst] < 0.3:
        yield (
            rules.CONTRADICTED,
            f"of the neighbors of samples of class {int(classes[worst])} "
            f"{shares[worst]:.0%} are of that class, of those of other classes "
            f"{usual:.0%} at the median.",
            "Look at the labels of this class.",
        )
