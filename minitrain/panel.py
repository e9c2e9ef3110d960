"""The instrument panel: what the gradient of a step says, and whether it is true.

The first instruments look at vectors that are there anyway: gradient, update and
parameters. The audits compute the loss of the step's batch again. None of them changes
the training.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from minitrain.audit import LossOf, Replay, Slope, check_slope, step_audit
from minitrain.instruments import cosine, dot, length, norm, norms, zero_shares
from minitrain.vector import Theta

Readings = dict[str, Tensor | float]
WHOLE = "all"
"""The name of the whole vector among those of its parts."""


@dataclass
class Cadence:
    """Steps between two readings of each kind; 0 is never."""

    look: int = 1
    audit: int = 50
    truth: int = 500


@dataclass
class Watch:
    """A step while it is watched: what the loop tells of it, and what is read."""

    due: frozenset[str] = frozenset()
    loss: Tensor | None = None
    """Of the batch, before the update; computed again where not set."""
    clip_factor: float | None = None
    """By which the loop's clipping multiplied the gradient; None where it does not."""
    readings: Readings = field(default_factory=dict)
    """Tags and values, complete when the block is left."""
    grads: list[Tensor] = field(default_factory=list)
    before: list[Tensor] = field(default_factory=list)


class Panel:
    """Measures chosen steps of a training, around the statements of anybody's loop.

    >>> model = nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> panel, x = Panel(model, optimizer), torch.ones(4, 2)
    >>> with panel.watch(1, lambda: model(x).square().mean()) as watch:
    ...     model(x).square().mean().backward()
    ...     optimizer.step()
    >>> round(float(watch.readings["cosine/steepest_descent"]), 4)
    1.0

    The block holds the forward pass, the backward pass and the update of one step. The
    function computes the loss of the step's batch; it is called for the audits alone.

    In the readings g is the gradient before clipping, u = theta' - theta the update:

    update_norm/...          |u|, over all parameters and of each
    update_ratio/...         |u| / |theta|
    zero_share/<name>        share of the elements of g that are exactly 0
    cosine/steepest_descent  of the angle between u and -g: 1 is straight downhill
    cosine/previous          of the angle between g and that of the step before
    momentum/share           |d - g'| / |d|: of the direction taken, d = -u / lr, what
                             is not g', this step's clipped gradient with weight decay
    momentum/effective_lr    |u| / |g'|: tends to lr / (1 - momentum)
    path/distance            |theta' - theta_0|, from the start
    path/efficiency          that, over the length of the path from reading to reading:
                             1 is a straight line
    clip/fraction            share of the steps since the last reading that were clipped
    audit/...                see `StepAudit`
    truth/error              see `Slope`: along the whole gradient,
    truth/worst_error        and the largest along the part of any parameter
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        cadence: Cadence | None = None,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.cadence = cadence or Cadence()
        self.costs: dict[str, float] = {}
        """Seconds that the last reading of each kind took."""
        self.seconds = 0.0
        """Seconds that all readings took."""
        self.slopes: dict[str, Slope] = {}
        """The last truth test, of the gradient as a whole and of each parameter."""
        self._names: dict[Tensor, str] = {p: n for n, p in model.named_parameters()}
        self._start = self._corner = self._copies()
        self._path_length = torch.zeros(())
        self._previous: list[Tensor] | None = None
        self._num_steps = self._num_clipped = 0

    @contextmanager
    def watch(
        self,
        number: int,
        loss_of: LossOf,
        *,
        is_last: bool = False,
        autocast: torch.dtype | None = None,
    ) -> Iterator[Watch]:
        """Watch step `number`, counted from 1; the first and the last are always read.

        Where the loop's forward pass runs under autocast, so does the step audit; the
        truth test, with more tolerance, compares with the loss in full precision.
        """
        watch = Watch(self._due(number, is_last))
        if watch.due:
            same = Replay(self.model, loss_of, autocast)
            full = Replay(self.model, loss_of) if autocast else same
            hook = self.optimizer.register_step_pre_hook(
                lambda *_: self._before_update(watch, same, full)
            )
            try:
                yield watch
            finally:
                hook.remove()
            self._after_update(watch, same)
        else:
            yield watch
            self._num_steps += 1
            self._num_clipped += watch.clip_factor is not None and watch.clip_factor < 1
        # The next reading compares its gradient with this one.
        is_needed = "look" in self._due(number + 1, False)
        self._previous = self._gradients() if is_needed else None

    def state_dict(self) -> dict[str, Any]:
        """What later readings depend on: it belongs into a checkpoint."""
        return {
            "cadence": asdict(self.cadence),
            "seconds": self.seconds,
            "start": self._start,
            "corner": self._corner,
            "path_length": self._path_length,
            "previous": self._previous,
            "clipping": [self._num_steps, self._num_clipped],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue as if never interrupted, with the cadence that was fixed then."""

        def placed(tensors: list[Tensor]) -> list[Tensor]:
            pairs = zip(tensors, self._tensors(), strict=True)
            return [tensor.to(p.device) for tensor, p in pairs]

        self.cadence, self.seconds = Cadence(**state["cadence"]), state["seconds"]
        self._start, self._corner = placed(state["start"]), placed(state["corner"])
        self._path_length = state["path_length"].to(self._start[0].device)
        previous = state["previous"]
        self._previous = None if previous is None else placed(previous)
        self._num_steps, self._num_clipped = state["clipping"]

    def _due(self, number: int, is_last: bool) -> frozenset[str]:
        at_an_end = is_last or number == 1
        cadence = asdict(self.cadence).items()
        return frozenset(
            kind for kind, n in cadence if n and (at_an_end or number % n == 0)
        )

    def _before_update(self, watch: Watch, same: Replay, full: Replay) -> None:
        """Read the gradient that the optimizer is about to use."""
        with self._timed("look"):
            watch.grads, watch.before = self._gradients(), self._copies()
        if watch.loss is None and watch.due & {"audit", "truth"}:
            watch.loss = torch.tensor(same(), dtype=torch.float64)
        if "truth" in watch.due:
            with self._timed("truth"):
                self._truth(watch, full, tolerance=0.05 if full is same else 0.25)

    def _after_update(self, watch: Watch, same: Replay) -> None:
        """Read what the update did, if there was one."""
        if watch.grads and "look" in watch.due:
            with self._timed("look", more=True):
                self._look(watch)
        if watch.grads and "audit" in watch.due:
            with self._timed("audit"):
                self._audit(watch, same)

    def _look(self, watch: Watch) -> None:
        """Measure gradient, update and path: see the class for the formulas."""
        grads, before, after = watch.grads, watch.before, self._copies()
        updates = _differences(before, after)
        # d = -u / lr, and g' with the weight decay that the optimizer adds to it.
        directions, used = [], []
        for group, g, theta, u in zip(
            self._groups(), grads, before, updates, strict=True
        ):
            directions.append(u / -group["lr"])
            used.append(g.add(theta, alpha=group.get("weight_decay", 0)))
        names, update_parts = zip(*self._parts(updates), strict=True)
        update_norms = norms(update_parts)
        update_norm = length(update_norms)
        readings: Readings = {
            "update_norm/global": update_norm,
            "update_ratio/global": update_norm / norm(before),
            "cosine/steepest_descent": -cosine(updates, grads),
            "momentum/share": norm(_differences(used, directions)) / norm(directions),
            "momentum/effective_lr": update_norm / norm(used),
        }
        if self._previous is not None:
            readings["cosine/previous"] = cosine(grads, self._previous)
        for kind, values in {
            "update_norm": update_norms,
            "update_ratio": update_norms / norms([t for _, t in self._parts(before)]),
            "zero_share": zero_shares([g for _, g in self._parts(grads)]),
        }.items():
            tags = (f"{kind}/{name}" for name in names)
            readings.update(zip(tags, values.unbind(), strict=True))

        self._path_length += norm(_differences(self._corner, after))
        self._corner = after
        distance = norm(_differences(self._start, after))
        readings["path/distance"] = distance
        readings["path/efficiency"] = distance / self._path_length
        if watch.clip_factor is not None:
            num_clipped = self._num_clipped + (watch.clip_factor < 1)
            readings["clip/fraction"] = num_clipped / (self._num_steps + 1)
        self._num_steps = self._num_clipped = 0
        watch.readings |= readings

    def _audit(self, watch: Watch, same: Replay) -> None:
        """Compare the decrease of the loss that g promised with the one delivered."""
        updates = _differences(watch.before, self._tensors())
        group = next(self._groups())
        assert watch.loss is not None
        loss_after = same()
        audit = step_audit(
            watch.loss.item(),
            loss_after,
            dot(updates, watch.grads).item() / (watch.clip_factor or 1.0),
            norm(updates).item(),
            lr=float(group["lr"]),
            momentum=group.get("momentum", 0),
            dampening=group.get("dampening", 0),
            nesterov=group.get("nesterov", False),
            resolution=same.resolution,
        )
        for name, value in audit._asdict().items():
            if math.isfinite(value):
                watch.readings[f"audit/{name}"] = value

    def _truth(self, watch: Watch, full: Replay, tolerance: float) -> None:
        """Compare g with differences of the loss: as a whole, and part by part."""
        generator = torch.Generator().manual_seed(0)
        loss = full()
        parts = zip(self._parts(self._tensors()), self._parts(watch.grads), strict=True)
        blocks = {WHOLE: (self._tensors(), watch.grads)}
        blocks |= {name: ([p], [g]) for (name, p), (_, g) in parts}
        self.slopes = {}
        for name, (tensors, grads) in blocks.items():
            steepness, scale = norm(grads).item(), 1.0
            if steepness > 0:
                direction = [g / steepness for g in grads]
            else:  # where no gradient came, the loss must be flat in any direction
                drawn = [torch.randn(g.shape, generator=generator) for g in grads]
                drawn = [d.to(g) for d, g in zip(drawn, grads, strict=True)]
                direction = [d / norm(drawn) for d in drawn]
                scale = max(1.0, norm(tensors).item())
            self.slopes[name] = check_slope(
                full,
                tensors,
                direction,
                steepness / (watch.clip_factor or 1.0),
                loss,
                resolution=full.resolution,
                tolerance=tolerance,
                scale=scale,
            )
        errors = {name: slope.error for name, slope in self.slopes.items()}
        if math.isfinite(errors[WHOLE]):
            watch.readings["truth/error"] = errors.pop(WHOLE)
        if known := [error for error in errors.values() if math.isfinite(error)]:
            watch.readings["truth/worst_error"] = max(known)

    @contextmanager
    def _timed(self, kind: str, more: bool = False) -> Iterator[None]:
        """Note the seconds that a reading of this kind took, or this part of one."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.costs[kind] = seconds + (self.costs[kind] if more else 0.0)
        self.seconds += seconds

    def _groups(self) -> Iterator[dict[str, Any]]:
        """The group of every tensor, in their order."""
        for group in self.optimizer.param_groups:
            yield from [group] * len(group["params"])

    def _tensors(self) -> list[Tensor]:
        """What the optimizer updates: parameters, or one vector of them."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _copies(self) -> list[Tensor]:
        return [tensor.detach().clone() for tensor in self._tensors()]

    def _gradients(self) -> list[Tensor]:
        """Copies of the gradients; none counts as zero."""
        return [
            torch.zeros_like(t) if t.grad is None else t.grad.clone()
            for t in self._tensors()
        ]

    def _parts(self, values: list[Tensor]) -> list[tuple[str, Tensor]]:
        """Name and part of every parameter, in a value for each tensor."""
        parts = []
        for tensor, value in zip(self._tensors(), values, strict=True):
            if isinstance(tensor, Theta):
                vector = tensor.vector
                parts += zip(vector.names, vector.split(value), strict=True)
            else:
                parts.append((self._names.get(tensor, "?"), value))
        return parts


def _differences(before: list[Tensor], after: list[Tensor]) -> list[Tensor]:
    return [b.detach() - a.detach() for a, b in zip(before, after, strict=True)]
