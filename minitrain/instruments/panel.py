"""The instrument panel: what the gradient of a step says, and whether it is true.

The first instruments look at vectors that are there anyway: gradient, update and
parameters. The audits compute the loss of the step's batch again. None of them changes
the training.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from minitrain.instruments.audit import step_audit
from minitrain.instruments.cadence import Cadence, cadence
from minitrain.instruments.noise import NoiseScale
from minitrain.instruments.per_sample import PerSampleNorms
from minitrain.instruments.readings import zero_shares
from minitrain.instruments.recompute import LossOf, Replay
from minitrain.instruments.truth import Slope, check_slope
from minitrain.norms import dot, norm, norms
from minitrain.vector import Theta

Readings = dict[str, float]


WHOLE = "all"
"""The name of the whole vector among those of its parts."""


MEMORY = {"look": ("corner", "path_length", "clipping"), "noise": ("noise",)}
"""What a reading of a kind leaves for the next one, by its keys in the state."""


NOTHING: frozenset[str] = frozenset()


@dataclass
class Watch:
    """A step while it is watched: what the loop tells of it, and what is read."""

    due: frozenset[str] = NOTHING
    loss: float | None = None
    """Of the batch, before the update; computed again where not set."""
    num_samples: int = 0
    """In the batch; without it the noise scale is withheld."""
    clip_factor: float | None = None
    """By which the loop's clipping multiplied the gradient; None where it does not."""
    readings: Readings = field(default_factory=dict)
    """Tags and values, complete when the block is left."""
    grads: list[Tensor] = field(default_factory=list)
    before: list[Tensor] = field(default_factory=list)
    norms: PerSampleNorms | None = None
    replays: tuple[Replay, Replay] | None = None
    """Of the batch: as the loop computes it, and in full precision."""
    read: Callable[["Watch"], None] = lambda watch: None
    """Reads the gradient that the optimizer is about to use."""

    def before_update(
        self, loss: float, num_samples: int, clip_factor: float | None
    ) -> None:
        """Take in what the loop tells, and read the complete gradient."""
        self.loss, self.num_samples = loss, num_samples
        self.clip_factor = clip_factor
        self.read(self)


class _Passing:
    """A step of which nothing is read, at next to no cost."""

    def __init__(self, count: Callable[[float | None], None]) -> None:
        self.readings: Readings = {}
        self._count = count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def before_update(
        self, loss: float, num_samples: int, clip_factor: float | None
    ) -> None:
        self._count(clip_factor)


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
    noise/scale              see `NoiseScale`: samples in a batch whose gradient is
                             as long as its noise
    noise/signal_share       |G|^2 / (|G|^2 + tr(Sigma) / B): what of the squared length
                             of a batch's gradient is not noise
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
        self.cadence = Cadence() if cadence is None else cadence
        self.costs: dict[str, float] = {}
        """Seconds that the last reading of each kind took."""
        self.seconds = 0.0
        """Seconds that the panel took of the steps' time, from the first one on."""
        self.slopes: dict[str, Slope] = {}
        """The last truth test, of the gradient as a whole and of each parameter."""
        self._names: dict[Tensor, str] = {p: n for n, p in model.named_parameters()}
        self._start = self._corner = self._theta()
        self._path_length: Tensor | float = 0.0
        self._previous: list[Tensor] | None = None
        self._rooms: dict[str, list[Tensor]] = {}
        self._num_steps = self._num_clipped = 0
        self._loss = self._first_loss = 0.0
        self.noise = NoiseScale()
        self._per_sample_norms: PerSampleNorms | None = None
        self._passing = _Passing(self._count)

    def fit(
        self,
        loss_of: LossOf,
        num_samples: int,
        budget: float,
        *,
        unit: int = 1,
        autocast: torch.dtype | None = None,
    ) -> Cadence:
        """Measure once what readings cost here, and how often the budget allows them.

        `loss_of` computes the loss of some batch, as for `watch`. Afterwards model,
        panel and random state are as before, and the gradients are zero.
        """
        state, replay = self.state_dict(), Replay(self.model, loss_of, autocast)
        step, costs = math.inf, dict.fromkeys(Cadence._fields, math.inf)
        with replay.untouched():
            for _ in range(3):  # the first time is slower
                watch = Watch(
                    frozenset(Cadence._fields),
                    num_samples=num_samples,
                    replays=(replay, replay),
                )
                with self._per_sample(watch):
                    start = time.perf_counter()
                    self.optimizer.zero_grad()
                    replay.loss().backward()
                    step = min(step, time.perf_counter() - start)
                    self._before_update(watch)
                self._after_update(watch)
                for kind, seconds in self.costs.items():
                    costs[kind] = min(costs[kind], 2 * seconds)  # here caches are warm
        self.optimizer.zero_grad()
        self.load_state_dict(state)
        return cadence(costs, step, budget, unit)

    @contextmanager
    def _per_sample(self, watch: Watch) -> Iterator[None]:
        """Have the backward pass note the gradients of single samples, if due."""
        if "noise" not in watch.due or self.withheld is not None:
            yield
            return
        with self._counted():
            is_first = self._per_sample_norms is None
            norms = self._per_sample_norms or PerSampleNorms(self.model)
            self._per_sample_norms = norms
            watch.norms = norms.watch(check=is_first)
        with watch.norms:
            yield

    @property
    def withheld(self) -> str | None:
        """Why there is no noise scale, if there is none."""
        norms = self._per_sample_norms
        return None if norms is None else norms.withheld

    def step(
        self,
        number: int,
        loss_of: LossOf,
        *,
        is_last: bool = False,
        autocast: torch.dtype | None = None,
    ) -> AbstractContextManager["Watch | _Passing"]:
        """Watch step `number` of `train`, which tells by itself what it does.

        The first and the last step are always read. Where the loop's forward pass runs
        under autocast, so does the step audit; the truth test, with more tolerance,
        compares with the loss in full precision.
        """
        if self._is_due(number, is_last):
            return self._reading(number, loss_of, is_last, autocast)
        return self._passing

    def _is_due(self, number: int, is_last: bool = False) -> bool:
        """Whether there is something to do at this step."""
        unit = self._unit
        if number % unit and (number + 1) % unit and number != 1 and not is_last:
            return False  # most steps, at no cost
        return bool(self._due(number, is_last)) or "look" in self._due(number + 1)

    def _count(self, clip_factor: float | None) -> None:
        """Count a step, and whether it was clipped."""
        if clip_factor is not None:
            self._num_steps += 1
            self._num_clipped += clip_factor < 1

    @contextmanager
    def watch(
        self,
        number: int,
        loss_of: LossOf,
        *,
        is_last: bool = False,
        autocast: torch.dtype | None = None,
    ) -> Iterator[Watch]:
        """Watch step `number`, counted from 1, of anybody's loop: see `step`.

        The loop tells nothing: the gradient is read when it calls `optimizer.step`.
        """
        with self._reading(number, loss_of, is_last, autocast) as watch:
            if not watch.due:
                yield watch
                return
            hook = self.optimizer.register_step_pre_hook(lambda *_: watch.read(watch))
            try:
                yield watch
            finally:
                hook.remove()

    @contextmanager
    def _reading(
        self,
        number: int,
        loss_of: LossOf,
        is_last: bool,
        autocast: torch.dtype | None,
    ) -> Iterator[Watch]:
        """Enclose a step that is read, or the one before it."""
        with self._counted():
            regular, watch = self._due(number), Watch(self._due(number, is_last))
            extra = watch.due - regular
            memory = self.state_dict() if extra else {}
            if watch.due & {"audit", "truth"}:
                same = Replay(self.model, loss_of, autocast)
                full = Replay(self.model, loss_of) if autocast else same
                watch.replays = same, full
        if watch.due:
            watch.read = self._before_update
            with self._per_sample(watch):
                yield watch
        else:
            yield watch
        with self._counted():
            if watch.norms is not None:
                self.seconds += watch.norms.seconds
            self._after_update(watch)
            # A run that is continued later has no last step here: leave no trace of it.
            for kind in extra & MEMORY.keys():
                forgotten = {key: memory[key] for key in MEMORY[kind]}
                self.load_state_dict(self.state_dict() | forgotten)
            if "look" not in regular:
                self._count(watch.clip_factor)
            # The next reading compares its gradient with this one.
            is_needed = "look" in self._due(number + 1)
            self._previous = _copies(self._gradients()) if is_needed else None

    def state_dict(self) -> dict[str, Any]:
        """What later readings depend on: it belongs into a checkpoint."""
        return {
            "seconds": self.seconds,
            "start": self._start,
            "corner": self._corner,
            "path_length": self._path_length,
            "previous": self._previous,
            "clipping": [self._num_steps, self._num_clipped],
            "first_loss": self._first_loss,
            "noise": self.noise.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue as if there had been no interruption."""

        def placed(tensors: list[Tensor]) -> list[Tensor]:
            pairs = zip(tensors, self._tensors(), strict=True)
            return [tensor.to(p.device) for tensor, p in pairs]

        self.seconds = state["seconds"]
        self._start, self._corner = placed(state["start"]), placed(state["corner"])
        self._path_length = torch.as_tensor(
            state["path_length"], device=self._start[0].device
        )
        previous = state["previous"]
        self._previous = None if previous is None else placed(previous)
        self._num_steps, self._num_clipped = state["clipping"]
        self._first_loss = state["first_loss"]
        self.noise.load_state_dict(state["noise"])

    def _due(self, number: int, is_last: bool = False) -> frozenset[str]:
        """The kinds that read at this step: the truth test is too dear for an extra."""
        if number != 1 and not is_last and number % self._unit:
            return NOTHING
        cadence = self.cadence._asdict()
        if is_last:
            return self._due(number) | {
                kind for kind in ("look", "audit", "noise") if cadence[kind]
            }
        return frozenset(
            kind
            for kind, n in cadence.items()
            if n and (number == 1 or number % n == 0)
        )

    @property
    def cadence(self) -> Cadence:
        return self._cadence

    @cadence.setter
    def cadence(self, cadence: Cadence) -> None:
        self._cadence = cadence
        # No kind reads in between its multiples. Nothing reads where all are 0.
        self._unit = math.gcd(*cadence) or sys.maxsize

    def _before_update(self, watch: Watch) -> None:
        """Read the gradient that the optimizer is about to use."""
        with self._counted():
            self._read_gradient(watch)

    def _read_gradient(self, watch: Watch) -> None:
        watch.grads = self._gradients()
        if watch.due & {"look", "audit"}:  # they compare with what comes of it
            with self._timed("look"):
                watch.grads = self._kept("grads", watch.grads)
                watch.before = self._kept("before", self._tensors())
        if watch.norms is not None and watch.num_samples:
            with self._timed("noise"):
                self._take_noise(watch, watch.norms)
            self.costs["noise"] += watch.norms.seconds
        if watch.replays is not None:
            same, full = watch.replays
            self._loss = same() if watch.loss is None else watch.loss
            self._first_loss = self._first_loss or self._loss
            if "truth" in watch.due:
                with self._timed("truth"):
                    self._truth(watch, full, tolerance=0.05 if full is same else 0.25)

    def _after_update(self, watch: Watch) -> None:
        """Read what the update did, if there was one."""
        if not watch.before:
            return
        with self._timed("look", more=True):
            updates = self._differences("updates", watch.before, self._tensors())
            if "look" in watch.due:
                self._look(watch, updates)
        if watch.replays is not None and "audit" in watch.due:
            with self._timed("audit"):
                self._audit(watch, updates, watch.replays[0])

    def _look(self, watch: Watch, updates: list[Tensor]) -> None:
        """Measure gradient, update and path: see the class for the formulas."""
        grads, before, after = watch.grads, watch.before, self._theta()
        used, groups, room = [*grads], [*self._groups()], self._room("differences")
        for i, group in enumerate(groups):
            if decay := group.get("weight_decay", 0):
                used[i] = torch.add(grads[i], before[i], alpha=decay, out=room[i])
        is_same = all(x is g for x, g in zip(used, grads, strict=True))
        names = self.names
        update_norms = norms(self._parts(updates))
        theta_norms = norms(self._parts(before))
        update_norm, grad_norm = norm(update_norms), norm(grads)
        used_norm = grad_norm if is_same else norm(used)
        rests = [  # -lr (d - g')
            torch.add(u, x, alpha=group["lr"], out=out)
            for u, x, group, out in zip(updates, used, groups, room, strict=True)
        ]
        downhill = -dot(updates, grads) / (update_norm * grad_norm)
        readings: dict[str, Tensor | float] = {
            "update_norm/global": update_norm,
            "update_ratio/global": update_norm / norm(theta_norms),
            "cosine/steepest_descent": downhill,
            "momentum/share": norm(rests) / update_norm,
            "momentum/effective_lr": update_norm / used_norm,
        }
        if self._previous is not None:
            readings["cosine/previous"] = dot(grads, self._previous) / (
                grad_norm * norm(self._previous)
            )
        for kind, values in {
            "update_norm": update_norms,
            "update_ratio": update_norms / theta_norms,
            "zero_share": zero_shares(self._parts(grads)),
        }.items():
            tags = (f"{kind}/{name}" for name in names)
            readings.update(zip(tags, values.unbind(), strict=True))

        self._path_length = self._path_length + norm(
            self._differences("differences", self._corner, after)
        )
        self._corner = after
        distance = norm(self._differences("differences", self._start, after))
        readings["path/distance"] = distance
        readings["path/efficiency"] = distance / self._path_length
        if watch.clip_factor is not None:
            num_clipped = self._num_clipped + (watch.clip_factor < 1)
            readings["clip/fraction"] = num_clipped / (self._num_steps + 1)
        self._num_steps = self._num_clipped = 0
        watch.readings |= _as_numbers(readings)

    def _audit(self, watch: Watch, updates: list[Tensor], same: Replay) -> None:
        """Compare the decrease of the loss that g promised with the one delivered."""
        group = next(self._groups())
        loss_after = same()
        audit = step_audit(
            self._loss,
            loss_after,
            dot(updates, watch.grads).item() / (watch.clip_factor or 1.0),
            norm(updates).item(),
            lr=float(group["lr"]),
            momentum=group.get("momentum", 0),
            dampening=group.get("dampening", 0),
            nesterov=group.get("nesterov", False),
            resolution=self._resolution(same),
        )
        for name, value in audit._asdict().items():
            if math.isfinite(value):
                watch.readings[f"audit/{name}"] = value

    def _take_noise(self, watch: Watch, norms: PerSampleNorms) -> None:
        """Compare the gradients of single samples with that of the batch."""
        norms.close()
        mean_square = norms.mean_square(watch.num_samples)
        if mean_square is None:
            return
        batch_norm = norm(watch.grads).item() / (watch.clip_factor or 1.0)
        self.noise.update(mean_square, batch_norm**2, watch.num_samples)
        if self.noise.value is not None:
            watch.readings["noise/scale"] = self.noise.value
        if (estimate := self.noise.estimate) is not None:
            signal = max(estimate.gradient_square, 0.0)
            noise = max(estimate.trace, 0.0) / watch.num_samples
            if signal + noise > 0:
                watch.readings["noise/signal_share"] = signal / (signal + noise)

    def _truth(self, watch: Watch, full: Replay, tolerance: float) -> None:
        """Compare g with differences of the loss: as a whole, and part by part."""
        generator = torch.Generator().manual_seed(0)
        loss = full()
        tensors = [tensor.detach() for tensor in self._tensors()]
        parts = [self.names, self._parts(tensors), self._parts(watch.grads)]
        blocks = {WHOLE: (tensors, watch.grads)}
        blocks |= {name: ([p], [g]) for name, p, g in zip(*parts, strict=True)}
        self.slopes = {}
        for name, (theta, grads) in blocks.items():
            steepness, scale = norm(grads).item(), 1.0
            if steepness > 0:
                direction = [g / steepness for g in grads]
            else:  # where no gradient came, the loss must be flat in any direction
                drawn = [torch.randn(g.shape, generator=generator) for g in grads]
                drawn = [d.to(g) for d, g in zip(drawn, grads, strict=True)]
                direction = [d / norm(drawn) for d in drawn]
                scale = max(1.0, norm(theta).item())
            self.slopes[name] = check_slope(
                full,
                theta,
                direction,
                steepness / (watch.clip_factor or 1.0),
                loss,
                resolution=self._resolution(full),
                tolerance=tolerance,
                # Of twice this length the errors of rounding and curvature are alike.
                h=2 * scale * torch.finfo(theta[0].dtype).eps ** (1 / 3),
            )
        errors = {name: slope.error for name, slope in self.slopes.items()}
        if math.isfinite(errors[WHOLE]):
            watch.readings["truth/error"] = errors.pop(WHOLE)
        if known := [error for error in errors.values() if math.isfinite(error)]:
            watch.readings["truth/worst_error"] = max(known)

    def _resolution(self, replay: Replay) -> float:
        """The difference below which two losses of the run are not told apart.

        A tenth of the first loss counts at least: the rounding of a loss near zero is
        that of the larger numbers that it is the difference of.
        """
        return replay.rounding * max(abs(self._loss), abs(self._first_loss) / 10)

    @contextmanager
    def _timed(self, kind: str, more: bool = False) -> Iterator[None]:
        """Note the seconds that a reading of this kind took, or this part of one."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.costs[kind] = seconds + (self.costs[kind] if more else 0.0)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Add to the panel's seconds."""
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start

    def _groups(self) -> Iterator[dict[str, Any]]:
        """The group of every tensor, in their order."""
        for group in self.optimizer.param_groups:
            yield from [group] * len(group["params"])

    def _tensors(self) -> list[Tensor]:
        """What the optimizer updates: parameters, or one vector of them."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _theta(self) -> list[Tensor]:
        return _copies(self._tensors())

    def _room(self, name: str) -> list[Tensor]:
        """Memory that is kept from reading to reading.

        New memory each time would be mapped anew: hundreds of page faults in a reading.
        """
        if name not in self._rooms:
            self._rooms[name] = [torch.empty_like(t.detach()) for t in self._tensors()]
        return self._rooms[name]

    def _kept(self, name: str, tensors: list[Tensor]) -> list[Tensor]:
        """A copy, until the next one of that name."""
        pairs = zip(self._room(name), tensors, strict=True)
        return [room.copy_(tensor.detach()) for room, tensor in pairs]

    def _differences(
        self, name: str, before: list[Tensor], after: list[Tensor]
    ) -> list[Tensor]:
        """after - before, until the next ones of that name."""
        return [
            torch.sub(b.detach(), a.detach(), out=room)
            for room, a, b in zip(self._room(name), before, after, strict=True)
        ]

    def _gradients(self) -> list[Tensor]:
        """The gradients; none counts as zero."""
        return [
            torch.zeros_like(t) if t.grad is None else t.grad for t in self._tensors()
        ]

    @property
    def names(self) -> list[str]:
        """The name of every parameter, in the optimizer's order."""
        names = []
        for tensor in self._tensors():
            known = [self._names.get(tensor, "?")]
            names += tensor.vector.names if type(tensor) is Theta else known
        return names

    def _parts(self, values: list[Tensor]) -> list[Tensor]:
        """The part of every parameter in values of the shapes of the tensors."""
        parts = []
        for tensor, value in zip(self._tensors(), values, strict=True):
            is_vector = type(tensor) is Theta
            parts += tensor.vector.split(value) if is_vector else [value]
        return parts


def _copies(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def _as_numbers(readings: dict[str, Tensor | float]) -> Readings:
    """The readings as numbers, all tensors among them read from the device at once."""
    tensors = [x for x in readings.values() if isinstance(x, Tensor)]
    read = iter(torch.stack(tensors).tolist())
    return {
        tag: next(read) if isinstance(x, Tensor) else x for tag, x in readings.items()
    }
