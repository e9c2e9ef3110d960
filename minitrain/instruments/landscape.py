"""The loss around trained weights, and on the way to them.

A network's loss is a function of n weights, of which a picture shows two directions,
or one. Around the trained weights theta those are random, with every filter of theta's
own size: Li et al., Visualizing the loss landscape of neural nets, 2018. On the way
there it is the straight line from the initial weights: Goodfellow et al., Qualitatively
characterizing neural network optimization problems, 2015.

Every value is the evaluated loss of the model with the weights of that point, neither
interpolated nor smoothed. The model is in evaluation mode: without dropout, and with
the running statistics of BatchNorm.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from minitrain.epochs import Batch, Epochs
from minitrain.evaluation import evaluate

Weights = Mapping[str, Tensor]
"""Parameters, or parameters and buffers, by the names of the model's `state_dict`."""


class Plane(NamedTuple):
    """The loss over a plane through the weights of a model."""

    coordinates: Tensor
    """Of the points along both directions: (num,), with 0 in the middle."""
    losses: Tensor
    """losses[i, j] = L(theta + x_j d + x_i e), with x the coordinates: (num, num)."""


def plane(
    model: nn.Module,
    batches: Epochs | Iterable[Batch],
    loss_fn: Callable[[Any, Any], Tensor],
    *,
    radius: float = 1.0,
    num_points: int = 17,
    seed: int = 0,
) -> Plane:
    """Return the loss over a plane of two random directions d and e around a model.

    theta(x, y) = theta + x d + y e, with d and e from `random_direction`: at x = 1
    every filter is as far from its own weights as those are from 0.

    Args:
        model: The model; it stays as it is.
        batches: As for `evaluate`; they are gone through once for every point.
        loss_fn: `loss_fn(outputs, targets)` is the mean loss over a batch.
        radius: The plane reaches from -radius to radius along both directions.
        num_points: How many points there are along each, an odd number, so that theta
            itself is one of them.
        seed: Of the directions.

    Raises:
        ValueError: num_points is even or below 3; or as `random_direction` and
            `evaluate` do.
    """
    if num_points < 3 or num_points % 2 == 0:
        raise ValueError(
            f"num_points = {num_points}: must be odd and at least 3, so that the "
            "weights themselves are in the middle"
        )
    generator = Generator().manual_seed(seed)
    d, e = (random_direction(model, generator) for _ in range(2))
    half = num_points // 2
    x = torch.arange(-half, half + 1, dtype=torch.float64) / half * radius
    theta = {name: weight.detach() for name, weight in model.named_parameters()}
    points = (
        {name: theta[name] + b * d[name] + a * e[name] for name in d}
        for a in x.tolist()
        for b in x.tolist()
    )
    losses = losses_at(points, model, batches, loss_fn)
    return Plane(x, losses.view(num_points, num_points))


def random_direction(model: nn.Module, generator: Generator) -> dict[str, Tensor]:
    """Return a random direction in which every filter has the size of the model's own.

    A filter is what makes one unit or channel: weight[i]. Its part of the direction is
    normal noise r, scaled to the filter's norm: d_i = r_i |weight[i]| / |r_i|. Without
    that a network with large weights, which ReLU lets compute the same, would look
    flatter. Biases and the parameters of normalization layers, with no more than one
    dimension, are not moved; nor are those that are not trained.

    Args:
        model: The model.
        generator: Draws the noise, on the CPU.

    Returns:
        The direction by the names of the parameters, in their shapes.

    Raises:
        ValueError: There is no trainable parameter with two dimensions or more.
    """
    direction = {}
    for name, weight in model.named_parameters():
        if weight.dim() < 2 or not weight.requires_grad:
            continue
        noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        noise, dims = noise.to(weight.device), [*range(1, weight.dim())]
        sizes, own = (
            torch.linalg.vector_norm(x.detach(), dim=dims, keepdim=True)
            for x in (noise, weight)
        )
        direction[name] = noise * (own / sizes)
    if not direction:
        raise ValueError(
            "no trainable parameter has two dimensions: there are no filters to move"
        )
    return direction


def line(
    start: Weights,
    end: Weights,
    alphas: Tensor,
    model: nn.Module,
    batches: Epochs | Iterable[Batch],
    loss_fn: Callable[[Any, Any], Tensor],
) -> Tensor:
    """Return the loss along the straight line from some weights to others.

    theta(alpha) = (1 - alpha) start + alpha end. Running statistics go along, so that
    both ends are the models that they come from; what is no real number, such as a
    count, is that of the end.

    Args:
        start: Parameters and buffers at alpha = 0, as `state_dict` returns them.
        end: Those at alpha = 1.
        alphas: Where on the line: (num,).
        model, batches, loss_fn: As for `plane`.

    Returns:
        The losses, (num,).
    """
    points = (_between(start, end, alpha) for alpha in alphas.tolist())
    return losses_at(points, model, batches, loss_fn)


def _between(start: Weights, end: Weights, alpha: float) -> dict[str, Tensor]:
    return {
        name: (1 - alpha) * start[name] + alpha * x if x.is_floating_point() else x
        for name, x in _tensors(end)
    }


def nearest_alpha(weights: Weights, start: Weights, end: Weights) -> float:
    """Return where on a line the point lies that is nearest to some weights.

    alpha = (weights - start) . (end - start) / |end - start|^2. At alpha = 0 training
    has not come nearer to its end, and at 1 it is there, as far as the line tells.
    """
    product = square = 0.0
    for name, x in _tensors(end):
        if x.is_floating_point():
            whole = (x - start[name]).double()
            product += float((whole * (weights[name] - start[name])).sum())
            square += float(whole.square().sum())
    return product / square if square else 0.0


def losses_at(
    points: Iterable[Weights],
    model: nn.Module,
    batches: Epochs | Iterable[Batch],
    loss_fn: Callable[[Any, Any], Tensor],
) -> Tensor:
    """Return the evaluated loss of a model with other weights, at every point: (num,).

    Each point names the same weights; those that it does not name are the model's.
    The work is done by a copy, and the model stays as it is.
    """
    probe = copy.deepcopy(model)
    state = probe.state_dict()  # its tensors are those of the copy, not copies of them
    losses = []
    for weights in points:
        for name, x in _tensors(weights):
            state[name].copy_(x)
        losses.append(evaluate(probe, batches, loss_fn, metrics=_none).loss)
    return torch.tensor(losses, dtype=torch.float64)


def _none(outputs: Any, targets: Any) -> dict[str, Tensor]:
    return {}


def _tensors(weights: Weights) -> Iterator[tuple[str, Tensor]]:
    """Yield what of a state is a tensor: a module may keep anything else there."""
    return ((name, x) for name, x in weights.items() if isinstance(x, Tensor))
