"""A look at data, model and loss before the first step, which leaves no trace."""

import copy
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from minitrain.batches import Batches
from minitrain.data_parallel import without_ddp
from minitrain.epochs import Batch, Epochs, epoch_of, size_of
from minitrain.instruments.findings import Finding
from minitrain.instruments.model_checks import check_model
from minitrain.instruments.sample_checks import (
    Told,
    check_finite,
    check_labels,
    check_samples,
)
from minitrain.randomness import RandomStates
from minitrain.samples import count, join, move, part, select, tensors_in

NUM_SAMPLES, NUM_ELEMENTS, SECONDS = 4096, 2**24, 1.0
"""At most so many samples are looked at, of so many numbers together, and read for so
long where they are not in memory."""

NUM_PASSED = 512
"""So many samples, or those of one batch, go through the model."""

UNFIT = (
    RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError
)  # fmt: skip
"""What comes of a model that cannot be copied, as one under `fully_shard`, or that
cannot take the samples."""


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

    Raises:
        ValueError: There is no batch, or it is no pair of inputs and targets.
    """
    if isinstance(batches, Iterator):
        return []
    with _untouched(model, batches):
        return [
            Finding(kind, 0, *rest) for kind, *rest in _look(model, loss_fn, batches)
        ]


class _Seen(NamedTuple):
    """What of the data is looked at."""

    batches: list[Batch]
    """Some of the first epoch."""
    in_order: Batch
    """Samples in the order of the data set, where it is known, or else of the epoch."""
    in_memory: Batch
    """All samples that are at hand."""


def _look(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    batches: Epochs | Iterable[Batch],
) -> Iterator[Told]:
    seen = _spread(batches) if isinstance(batches, Batches) else _first(batches)
    if bad := check_finite(seen.in_memory):
        yield bad
        return
    yield from check_samples(seen.batches, count(seen.in_memory))
    yield from check_labels(*seen.in_order)
    samples = join(seen.batches)
    try:
        copied = copy.deepcopy(without_ddp(model))
        device = next((p.device for p in copied.parameters()), torch.device("cpu"))
        num = min(NUM_PASSED, size_of(seen.batches[0]), count(samples))
        chosen = torch.arange(num) * count(samples) // num
        yield from check_model(copied, loss_fn, move(select(samples, chosen), device))
    except UNFIT:
        return  # it cannot be copied, or cannot take these samples: training tells


def _spread(batches: Batches) -> _Seen:
    """Return batches of the first epoch at equal distances, as many as allowed."""
    size, most = batches.batch_size, _most(batches.first(1))
    order = torch.arange(batches.num_samples)
    if batches.seed is not None:
        order = batches.order(1)
    num = max(1, min(len(batches), most // size))
    samples = batches.inputs, batches.targets
    starts = [place * len(batches) // num * size for place in range(num)]
    size = min(size, most)
    spread = [select(samples, order[start : start + size]) for start in starts]
    return _Seen(spread, batches.first(most), samples)


def _first(batches: Epochs | Iterable[Batch]) -> _Seen:
    """Return the first batches of the first epoch, as many as allowed and of one form.

    Raises:
        ValueError: There is none.
    """
    seen: list[Batch] = []
    start = time.perf_counter()
    for batch in epoch_of(batches, 1):
        most = _most(batch)
        inputs, targets = part(batch, 0, most)
        if seen and _form((inputs, targets)) != _form(seen[0]):
            break  # such as texts of another length
        seen.append((inputs, targets))
        is_late = time.perf_counter() - start > SECONDS
        if is_late or sum(map(size_of, seen)) >= most:
            break
    if not seen:
        raise ValueError("there is no batch to train on")
    samples = join(seen)
    return _Seen(seen, samples, samples)


def _form(batch: Batch) -> list[torch.Size]:
    return [tensor.shape[1:] for tensor in tensors_in(batch)]


def _most(batch: Batch) -> int:
    """Return how many samples like these are looked at."""
    num_elements = sum(x.numel() for x in tensors_in(batch)) / max(1, size_of(batch))
    return max(1, min(NUM_SAMPLES, int(NUM_ELEMENTS / max(1, num_elements))))


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
