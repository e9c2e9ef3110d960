"""The instrument panel: has every instrument read chosen steps at the right moments."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from minitrain import tags
from minitrain.instruments.audit import read_audit
from minitrain.instruments.cadence import IDLE, Cadence, Plan, fit_cadence
from minitrain.instruments.layer_hooks import PerSampleNorms
from minitrain.instruments.leftover import Leftover
from minitrain.instruments.memory import Memory
from minitrain.instruments.noise import NoiseEstimate, noise_estimate, read_noise
from minitrain.instruments.observation import Observation, Parameters, Vector
from minitrain.instruments.obstacles import find_late_gradient, find_obstacles
from minitrain.instruments.readings import read_look
from minitrain.instruments.recompute import BatchLoss, LossOf
from minitrain.instruments.truth import Slope, check_slopes, read_truth
from minitrain.instruments.watch import Unread, Watch


class Panel:
    """Measures chosen steps of a training, around the statements of anybody's loop.

    >>> model = nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> panel, x = Panel(model, optimizer), torch.ones(4, 2)
    >>> with panel.watch(1, lambda: model(x).square().mean()) as watch:
    ...     model(x).square().mean().backward()
    ...     optimizer.step()
    >>> round(watch.readings["cosine/steepest_descent"], 4)
    1.0

    The block holds the forward pass, the backward pass and the update of one step. What
    the readings mean is said in `tags`.

    Under `DistributedDataParallel` they are of the mean loss of all processes, whose
    gradient the parameters have: every process must have a panel and watch the same
    steps, as they wait for one another. Under `fully_shard` all readings are withheld.

    Args:
        model: The model.
        optimizer: Updates its parameters, or some of them.
        cadence: How often each kind reads; the first step is always read.
        beside: Other models that the loss passes through, such as the discriminator of
            a generator: computing it again leaves no trace in their buffers either.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        cadence: Cadence | None = None,
        *,
        beside: Sequence[nn.Module] = (),
    ) -> None:
        self.seconds = 0.0
        """Seconds that the panel took of the steps' time, from the first one on."""
        self.slopes: dict[str, Slope] = {}
        """The last truth test, of the gradient as a whole and of each parameter."""
        self._parameters = Parameters(model, optimizer)
        self.withheld = find_obstacles(model, self._parameters)
        """Why instruments, or single readings by their tags, are not given."""
        self.cadence = (cadence or Cadence()).without(self.withheld)
        self._model, self._optimizer, self._beside = model, optimizer, beside
        self._memory = Memory.begin(self._parameters.theta())
        self._sample_norms = PerSampleNorms(model)
        self._leftover = Leftover(self._parameters.each())
        self._unread = Unread(self._pass_over)

    def step(
        self,
        number: int,
        loss_of: LossOf,
        *,
        is_last: bool = False,
        autocast: torch.dtype | None = None,
    ) -> AbstractContextManager[Watch | Unread]:
        """Watch a step of `train`, which tells by itself what it does.

        Where the loop's forward pass runs under autocast, so does the step audit; the
        truth test, with more tolerance, compares with the loss in full precision.

        Args:
            number: The step, from 1.
            loss_of: Computes the loss of the step's batch; called for audits alone.
            is_last: Whether it is the last step, which is read in any case.
            autocast: The dtype of the step's own forward pass, where it is another.
        """
        plan = self.cadence.plan(number, is_last)
        if plan == IDLE:
            return nullcontext(self._unread)
        return self._read(plan, loss_of, autocast, number)

    def watch(
        self,
        number: int,
        loss_of: LossOf,
        *,
        num_samples: int = 0,
        is_last: bool = False,
        autocast: torch.dtype | None = None,
    ) -> AbstractContextManager[Watch | Unread]:
        """Watch a step of anybody's loop, as `step` does.

        The loop tells nothing but how it clips, if it does, by `watch.note_clipping`:
        the gradient is read when it calls `optimizer.step`. `num_samples` are in the
        batch; without it there is no noise scale. Of the second step it is always seen
        whether the loop forgets to reset the gradients.
        """
        plan = self.cadence.plan(number, is_last)
        if plan == IDLE and number != 2:
            return nullcontext(self._unread)
        return self._watch(plan, number, loss_of, num_samples, autocast)

    @contextmanager
    def _watch(
        self,
        plan: Plan,
        number: int,
        loss_of: LossOf,
        num_samples: int,
        autocast: torch.dtype | None,
    ) -> Iterator[Watch]:
        """Enclose a step that is read when the optimizer steps."""
        with self._read(plan, loss_of, autocast, number) as watch:

            def read_gradient(optimizer: Any, args: Any, kwargs: Any) -> None:
                if found := find_late_gradient(optimizer, args, kwargs):
                    return self.withheld.update(found)
                with self._timed():
                    loss = watch.same() if watch.plan.audits else math.nan
                watch.before_update(loss, num_samples, watch.clip_factor)

            with self._optimizer.register_step_pre_hook(read_gradient):
                yield watch

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

        Afterwards model, panel and random state are as before, and the gradients zero.
        What is withheld is never read.

        Args:
            loss_of: Computes the loss of some batch.
            num_samples: In that batch.
            budget: The share of the steps' own time that the readings may take.
            unit: Steps between two that are logged.
            autocast: As for `step`.
        """
        seconds, memory = self.seconds, self._memory
        step, costs = math.inf, dict.fromkeys(Cadence._fields, math.inf)
        batch_loss = BatchLoss(self._model, loss_of, autocast, self._beside)
        for kind in Cadence._fields * 3:  # the first time is slower
            start, self.seconds = time.perf_counter(), 0.0
            plan = Plan(due=frozenset({kind}))
            with batch_loss.untouched(), self._read(plan, loss_of, autocast) as watch:
                self._optimizer.zero_grad()
                loss = batch_loss.loss()
                loss.backward()
                watch.before_update(loss.item(), num_samples, None)
            step = min(step, time.perf_counter() - start - self.seconds)
            costs[kind] = min(costs[kind], 2 * self.seconds)  # caches are warm here
        self._optimizer.zero_grad()
        self._sample_norms.check_next()  # the loop may not do as was done here
        self.seconds, self._memory = seconds, memory
        step, *each = batch_loss.agree(step, *costs.values())
        fitted = fit_cadence(dict(zip(costs, each, strict=True)), step, budget, unit)
        return fitted.without(self.withheld)

    def state_dict(self) -> dict[str, Any]:
        """Return what later readings depend on, for a checkpoint."""
        return {"seconds": self.seconds} | self._memory.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue as if there had been no interruption."""
        self.seconds = state["seconds"]
        self._memory = Memory.from_state_dict(state, self._parameters.theta())

    def _pass_over(self, clip_factor: float | None) -> None:
        """Take note of a step that is not read."""
        if clip_factor is not None:
            self._memory = self._memory.pass_over(clip_factor)

    @contextmanager
    def _read(
        self,
        plan: Plan,
        loss_of: LossOf,
        autocast: torch.dtype | None,
        number: int = 0,
    ) -> Iterator[Watch]:
        """Enclose a step that is read, or the one before it; 0 is none of a loop."""
        plan = plan._replace(due=plan.due.difference(self.withheld))
        with self._timed():
            same = full = BatchLoss(self._model, loss_of, autocast, self._beside)
            if autocast is not None:
                full = BatchLoss(self._model, loss_of, None, self._beside)
            watch = Watch(plan, same, full, self._observe, self._read_samples)
            reads_noise = "noise" in plan.due
            samples = self._sample_norms.watch() if reads_noise else nullcontext()
        leftover = self._leftover.look(number, lambda: watch.observation is not None)
        with samples, leftover as was_left_over:
            yield watch
        with self._timed():
            if was_left_over():
                watch.readings[tags.LEFT_OVER] = 1.0
            self.seconds += self._sample_norms.seconds if reads_noise else 0.0
            if watch.observation is not None:
                self._conclude(watch, watch.observation)

    def _observe(
        self, watch: Watch, loss: float, num_samples: int, clip_factor: float | None
    ) -> Observation:
        """Read the gradient that the optimizer is about to use."""
        with self._timed():
            plan, parameters = watch.plan, self._parameters
            gradient = parameters.gradient()
            if plan.audits:
                (loss,) = watch.same.agree(loss)
            step = Observation(
                parameters=parameters,
                loss=loss,
                num_samples=num_samples,
                clip_factor=clip_factor,
                gradient=gradient.copy() if plan.keeps_vectors else gradient,
                weight_decay=parameters.coupled_decay(),
                before=parameters.theta().copy() if plan.compares else Vector(),
            )
            if "noise" in plan.due and num_samples != 1:  # one sample shows no noise
                step = replace(step, noise=self._estimate_noise(step, watch))
            if "truth" in plan.due:
                first_loss = self._memory.first_loss
                is_rough = watch.full is not watch.same
                self.slopes = check_slopes(step, watch.full, first_loss, is_rough)
                watch.readings |= read_truth(self.slopes)
        return step

    def _read_samples(self, watch: Watch, num_samples: int) -> float:
        """Return the mean square of the gradients of a shard's samples, or NaN."""
        if "noise" not in watch.plan.due:
            return math.nan
        with self._timed():
            norms = self._sample_norms
            norms.close()
            mean_square = norms.mean_square(num_samples)
            self.seconds += norms.seconds
            norms.watch()  # of the next shard
        return math.nan if mean_square is None else mean_square

    def _estimate_noise(self, step: Observation, watch: Watch) -> NoiseEstimate | None:
        """Compare the gradients of single samples with that of the batch."""
        norms, num_samples = self._sample_norms, step.num_samples
        norms.close()
        mean_square = watch.mean_square
        batch_square = step.unclip(step.gradient.norm.item()) ** 2
        if mean_square is None and num_samples:
            mean_square = norms.mean_square(num_samples, batch_square)
        if mean_square is None or math.isnan(mean_square):
            self.withheld["noise"] = norms.withheld or "num_samples is not known"
            return None
        return noise_estimate(mean_square, batch_square, num_samples)

    def _conclude(self, watch: Watch, step: Observation) -> None:
        """Read what the update did, and remember what later readings need."""
        plan, memory = watch.plan, self._memory
        step = replace(step, after=self._parameters.theta())
        seen = memory.after(step, plan.due, plan.keeps_gradient)
        if "look" in plan.due:
            clipping = memory.clipping.add(step.clip_factor)
            watch.readings |= read_look(step, seen.path, clipping, memory.previous)
        if "audit" in plan.due:
            self.withheld |= find_obstacles(self._model, self._parameters)
            watch.readings |= read_audit(step, watch.same, seen.first_loss)
        if step.noise is not None:
            watch.readings |= read_noise(seen.noise, step.num_samples)
        if plan.extra:  # what an extra reading has seen is forgotten
            seen = memory.after(step, plan.due - plan.extra, plan.keeps_gradient)
        self._memory = seen

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Add to the panel's seconds."""
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start
