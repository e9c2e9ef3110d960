"""The look at a step: pure functions of gradient, update and parameters.

`read_look` takes all of them; `tags` says what each is called.
"""

from collections.abc import Iterable, Sequence
from itertools import repeat

import torch
from torch import Tensor

from minitrain import tags
from minitrain.instruments.memory import Clipping, Path
from minitrain.instruments.observation import Observation, Readings, Vector, as_real
from minitrain.norms import dot, norm, norms


def cosine(x: Vector, y: Vector) -> Tensor:
    """Return the cosine x . y / (|x| |y|) of the angle between two vectors.

    >>> cosine(Vector([torch.tensor([3.0, 4.0])]), Vector([torch.tensor([1.0, 0.0])]))
    tensor(0.6000)
    """
    return dot(x, y) / (x.norm * y.norm)


def decayed_gradient(
    gradient: Vector, theta: Vector, weight_decay: Sequence[float]
) -> Vector:
    """Return g' = g + weight_decay * theta, the gradient that an update uses.

    >>> g, theta = Vector([torch.tensor([1.0])]), Vector([torch.tensor([2.0])])
    >>> decayed_gradient(g, theta, [0.5])
    [tensor([2.])]

    Args:
        gradient: g, after clipping.
        theta: The parameters before the update.
        weight_decay: That of each tensor.
    """
    if not any(weight_decay):
        return gradient
    triples = zip(gradient, theta, weight_decay, strict=True)
    return Vector(g.add(p, alpha=decay) if decay else g for g, p, decay in triples)


def momentum_share(update: Vector, used: Vector, lr: Sequence[float]) -> Tensor:
    """Return |d - g'| / |d|: how much of the direction d is not this step's gradient.

    The direction taken is d = -u / lr, so that the share is |u + lr g'| / |u|. It is 0
    without momentum; under a constant gradient it tends to the momentum.

    >>> update, used = Vector([torch.tensor([-0.4])]), Vector([torch.tensor([1.0])])
    >>> momentum_share(update, used, [0.1])  # three quarters came from earlier steps
    tensor(0.7500)

    Args:
        update: u.
        used: g', with weight decay.
        lr: The learning rate of each tensor.
    """
    triples = zip(update, used, lr, strict=True)
    return norm([u.add(g, alpha=rate) for u, g, rate in triples]) / update.norm


def effective_lr(update: Vector, used: Vector) -> Tensor:
    """Return |u| / |g'|: the learning rate that moves so far without any momentum.

    >>> update, used = Vector([torch.tensor([-0.4])]), Vector([torch.tensor([1.0])])
    >>> effective_lr(update, used)
    tensor(0.4000)
    """
    return update.norm / used.norm


def decay_share(before: Vector, used: Vector, weight_decay: Sequence[float]) -> Tensor:
    """Return |weight_decay theta| / |g'|: how much of g' is weight decay.

    >>> theta, used = Vector([torch.tensor([2.0])]), Vector([torch.tensor([4.0])])
    >>> decay_share(theta, used, [0.5])
    tensor(0.2500)

    Args:
        before: theta before the update.
        used: g', with weight decay.
        weight_decay: That of each tensor.
    """
    return norm(norms(before) * used.norm.new_tensor(weight_decay)) / used.norm


def zero_shares(parts: Iterable[Tensor]) -> Tensor:
    """Return the share of elements that are exactly 0, of each part.

    >>> zero_shares([torch.tensor([0.0, 1.0]), torch.zeros(3)])
    tensor([0.5000, 1.0000])
    """
    parts = [*parts]
    counts = torch.stack([part.count_nonzero() for part in parts])
    return 1 - counts / counts.new_tensor([part.numel() for part in parts])


def log2_counts(tensor: Tensor) -> Tensor:
    """Return how many elements are how large: counts by log2 |x|, on its device.

    Shape (64,): element k counts 2^(k - 48) <= |x| < 2^(k - 47). The first takes in
    what is smaller, zeros too, and the last what is larger.

    >>> counts = log2_counts(torch.tensor([1.0, -1.5, 0.25, 0.0]))
    >>> [(k - 48, int(n)) for k, n in enumerate(counts) if n]
    [(-48, 1), (-2, 1), (0, 2)]
    """
    exponents = as_real(tensor.detach()).abs().log2().floor().clamp(-48, 15)
    return torch.bincount(exponents.flatten().long() + 48, minlength=64)


def read_look(
    step: Observation, path: Path, clipping: Clipping, previous: Vector | None
) -> Readings:
    """Return the readings of gradient, update and path.

    Args:
        step: The step.
        path: The path of the parameters up to the step's end.
        clipping: The steps since the last look, this one included.
        previous: The gradient of the step before, if it was kept.
    """
    gradient, before, update = step.gradient, step.before, step.update
    decay, split = step.weight_decay, step.parameters.split
    used = decayed_gradient(gradient, before, decay)
    lr = [float(group["lr"]) for group in step.parameters.options()]
    update_norms, theta_norms = norms(split(update)), norms(split(before))
    distance, trained = path.distance(step.after), step.parameters.are_trained()
    readings = {
        tags.GLOBAL_UPDATE_NORM: update.norm,
        tags.GLOBAL_UPDATE_RATIO: update.norm / norm(theta_norms[trained]),
        tags.DESCENT_COSINE: -cosine(update, gradient),
        tags.DISTANCE: distance,
        tags.EFFICIENCY: distance / path.length,
    }
    if not step.parameters.departure_from_sgd():
        readings[tags.MOMENTUM_SHARE] = momentum_share(update, used, lr)
        readings[tags.EFFECTIVE_LR] = effective_lr(update, used)
    if any(decay):
        readings[tags.DECAY_SHARE] = decay_share(before, used, decay)
    if previous is not None:
        readings[tags.PREVIOUS_COSINE] = cosine(gradient, previous)
    names = step.parameters.names()
    for quantity, values in {
        tags.UPDATE_NORM: update_norms,
        tags.UPDATE_RATIO: update_norms / theta_norms,
        tags.ZERO_SHARE: zero_shares(split(gradient)),
    }.items():
        each = map(tags.tag, repeat(quantity), names)
        readings.update(zip(each, values.unbind(), strict=True))
    for name, is_trained in zip(names, trained, strict=True):
        if not is_trained:  # it has no gradient to count zeros in
            readings.pop(tags.tag(tags.ZERO_SHARE, name), None)
    # All numbers are read from the device at once.
    numbers = torch.stack([*readings.values()]).tolist()
    fraction = {tags.CLIP_FRACTION: clipping.fraction} if clipping.num_steps else {}
    return dict(zip(readings, numbers, strict=True)) | fraction
