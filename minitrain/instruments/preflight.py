"""A look at data, model and loss before the first step, which leaves no trace."""

import copy
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from minitrain.batches import Batch, Batches, Epochs, epoch_of, size_of
from minitrain.instruments.findings import Finding
from minitrain.instruments.model_checks import check_model
from minitrain.instruments.sample_checks import (
    Told,
    check_finite,
    check_labels,
    check_samples,
)
from minitrain.randomness import RandomStates
from minitrain.samples import count, join, move, part, select

NUM_SAMPLES = 4096
"""Of so many samples the targets are looked at."""

NUM_PASSED = 512
"""So many samples, or those of one batch, go through the model."""


def preflight(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    batches: Epochs | Iterable[Batch],
) -> list[Finding]:
    """Look for what is wrong before the first step; give it to `Findings.take`.

    Samples: numbers that are not finite, inputs without content, repeated ones, classes
    out of balance, an order by targets, targets that the neighbors contradict. Model
    and loss: outputs that depend on other samples, a loss that is a sum, a softmax too
    many, a first loss far above that of guessing, a small batch that cannot be learned.

    The model is copied, and random states are put back. What can be iterated only once
    is not looked at.

    >>> x = torch.tensor([[1.0], [torch.nan], [2.0]])
    >>> batches = Batches(x, x, batch_size=3)
    >>> found = preflight(nn.Linear(1, 1), nn.functional.mse_loss, batches)
    >>> [finding.kind for finding in found]
    ['samples not finite']

    Args:
        model: Any module: `model(inputs)` are the outputs.
        loss_fn: `loss_fn(outputs, targets)` is the mean loss over a batch.
        batches: As for `train`.
    """
    if isinstance(batches, Iterator):
        return []
    with _untouched(model, batches):
        return [
            Finding(kind, 0, *rest) for kind, *rest in _look(model, loss_fn, batches)
        ]


def _look(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    batches: Epochs | Iterable[Batch],
) -> Iterator[Told]:
    seen = _first(batches) if not isinstance(batches, Batches) else _spread(batches)
    if not seen:
        return
    samples = join(seen)
    in_memory = isinstance(batches, Batches)
    everything = (batches.inputs, batches.targets) if in_memory else samples
    if bad := check_finite(everything):
        yield bad
        return
    num_in_all = batches.num_samples if in_memory else count(samples)
    yield from check_samples(seen, num_in_all)
    in_order = batches.first(NUM_SAMPLES) if in_memory else samples
    yield from check_labels(*in_order)
    try:
        copied = copy.deepcopy(model)
        device = next((p.device for p in copied.parameters()), torch.device("cpu"))
        num = min(NUM_PASSED, size_of(seen[0]), count(samples))
        chosen = torch.arange(num) * count(samples) // num
        yield from check_model(copied, loss_fn, move(select(samples, chosen), device))
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError):
        return  # it cannot be copied, or cannot take these samples: training tells


def _spread(batches: Batches) -> list[Batch]:
    """Return batches of the first epoch at equal distances, together NUM_SAMPLES."""
    size = batches.batch_size
    order = torch.arange(batches.num_samples)
    if batches.seed is not None:
        order = batches.order(1)
    num = max(1, min(len(batches), NUM_SAMPLES // size))
    samples = batches.inputs, batches.targets
    starts = [place * len(batches) // num * size for place in range(num)]
    size = min(size, NUM_SAMPLES)
    return [select(samples, order[start : start + size]) for start in starts]


def _first(batches: Epochs | Iterable[Batch]) -> list[Batch]:
    """Return the first batches of the first epoch, together NUM_SAMPLES."""
    seen: list[Batch] = []
    for batch in epoch_of(batches, 1):
        seen.append(tuple(part(batch, 0, NUM_SAMPLES)))
        if sum(map(size_of, seen)) >= NUM_SAMPLES:
            break
    return seen


@contextmanager
def _untouched(model: nn.Module, batches: Any) -> Iterator[None]:
    """Put back what the checks draw from: every generator that is in reach."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    states = RandomStates(device)
    kept, of_python = states.state_dict(), random.getstate()
    numpy = sys.modules.get("numpy")
    of_numpy = numpy.random.get_state() if numpy else None
    owners = (batches, getattr(batches, "sampler", None))
    own = [getattr(each, "generator", None) for each in owners]
    generators = [(g, g.get_state()) for g in own if isinstance(g, torch.Generator)]
    try:
        yield
    finally:
        states.load_state_dict(kept)
        random.setstate(of_python)
        if numpy:
            numpy.random.set_state(of_numpy)
        for generator, state in generators:
            generator.set_state(state)
