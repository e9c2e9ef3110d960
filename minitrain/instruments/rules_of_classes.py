"""What a test says of single classes: one that is not learned, and why."""

from torch import Tensor

from minitrain.instruments.evidence import Verdict

LEAST = 20
"""Samples of a class in the test; of fewer nothing is said."""


def describe_unlearned_class(
    counts: Tensor, losses: Tensor | None = None, guessing: float | None = None
) -> Verdict:
    """Say which class a test hardly ever finds, or finds with a far higher loss.

    Random labels teach a model to guess. A class without samples has a loss far above
    that of guessing: it is taken for others with certainty.

    >>> import torch
    >>> counts = torch.tensor([[90, 10, 0], [40, 10, 50], [0, 9, 91]])
    >>> describe_unlearned_class(counts)[0]
    '10% of class 1 are right in the test, and 90% at the median of all classes.'

    Args:
        counts: Counts [target, predicted], shape (classes, classes).
        losses: The mean loss of each class, shape (classes,), where it is known.
        guessing: The loss of guessing, where it is known.
    """
    sizes = counts.sum(dim=1)
    known = (sizes >= LEAST).nonzero().flatten()
    if len(known) < 3:
        return None
    shares = (counts.diagonal().double() / sizes)[known]
    losses = None if losses is None else losses[known]
    place = _highest(losses, guessing)
    place = _lowest(shares) if place is None else place
    if place is None:
        return None
    text = (
        f"{shares[place]:.0%} of class {known[place]} are right in the test, and "
        f"{shares.median():.0%} at the median of all classes."
    )
    advice = "Look at the labels of this class, and at how many samples it has."
    if losses is not None:
        loss = losses[place].item()
        text += f" Their mean loss is {loss:.3g}, and {losses.median():.3g} there."
        # Of labels at random it is up to 1.6 times that of guessing, of none over 4.
        if guessing is not None and 0.8 * guessing < loss < 2.5 * guessing:
            text += f" It is about that of guessing, {guessing:.3g}."
            advice = "Look at the labels of this class: they seem to be random."
    return text, advice


def _highest(losses: Tensor | None, guessing: float | None) -> int | None:
    """Return the place of a loss like that of guessing, where others are far lower."""
    if losses is None or guessing is None:
        return None
    is_high = losses.max() > max(0.8 * guessing, 4 * losses.median())
    return int(losses.argmax()) if is_high else None


def _lowest(shares: Tensor) -> int | None:
    """Return the place of a share below half of the median, where that is high."""
    usual = shares.median()
    is_low = usual >= 0.85 and shares.min() <= usual / 2
    return int(shares.argmin()) if is_low else None
