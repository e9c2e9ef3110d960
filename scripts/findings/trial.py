"""One short run of a problem, and what is found in it."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from findings.problems import Problem
from torch import Tensor, nn

from minitrain import SGD, Batches, ParameterVector, evaluate, train
from minitrain.evaluation import predict
from minitrain.instruments.cadence import Cadence
from minitrain.instruments.findings import Findings
from minitrain.instruments.guessing import loss_of_guessing
from minitrain.instruments.panel import Panel
from minitrain.instruments.preflight import preflight
from minitrain.metrics import confusion_matrix, losses_by_class
from minitrain.norms import grad_norms, norm
from minitrain.runs.scalars import step_scalars
from minitrain.schedules import SCHEDULES
from minitrain.tags import GLOBAL_GRAD_NORM, GRAD_NORM, LR, TRAIN_LOSS, tag
from minitrain.training import NotFiniteError

Scalars = Iterator[tuple[int, Mapping[str, float]]]


def as_it_is(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x, y


@dataclass(frozen=True)
class Trial:
    """A short run, healthy by default; a fault changes one thing."""

    problem: Problem
    spoil_model: Callable[[nn.Module], object] = lambda model: None
    spoil_data: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = as_it_is
    spoil_loss: Callable[[Any], Any] = lambda loss_fn: loss_fn
    optimizer: dict[str, float] = field(default_factory=dict)
    lr_times: float = 1.0
    in_own_loop: bool = False
    looks_first: bool = True
    """Whether there is a preflight."""
    forgets_zero_grad: bool = False
    loss_scale: float = 1.0
    is_shuffled: bool = True
    num_samples: int | None = None
    batch_size: int | None = None
    epochs: int | None = None
    schedule: Callable[[int, int], float] = SCHEDULES["one-cycle"]
    clip_norm: float | None = None
    autocast: torch.dtype | None = None


def find(trial: Trial, seed: int) -> list[str]:
    """Train as the trial says; return the kinds of what is found."""
    return [finding.kind for finding in Course(trial, seed).run()]


class Course:
    """A trial while it is run."""

    def __init__(self, trial: Trial, seed: int) -> None:
        self.trial, problem = trial, trial.problem
        torch.manual_seed(seed)
        self.data = problem.data()
        chosen = torch.randperm(len(self.data.inputs))
        chosen = chosen[: trial.num_samples or problem.num_samples]
        x, y = trial.spoil_data(self.data.inputs[chosen], self.data.targets[chosen])
        size = trial.batch_size or problem.batch_size
        self.batches = Batches(x, y, size, seed=seed if trial.is_shuffled else None)
        self.model = problem.model()
        trial.spoil_model(self.model)
        self.loss_fn = trial.spoil_loss(problem.loss_fn)
        options: dict[str, Any] = {**problem.optimizer, **trial.optimizer}
        options["lr"] *= trial.lr_times
        weights = self.model.parameters()
        if not trial.in_own_loop:
            weights = ParameterVector(self.model)
        self.optimizer = SGD(weights, **options)
        self.base_lr = options["lr"]
        self.epochs = trial.epochs or problem.epochs
        self.num_steps = self.epochs * len(self.batches)
        self.every = max(1, self.num_steps // 20)
        # Of the noise a long run has more readings: the default budget allows these.
        noise = min(self.every, 100)
        cadence = Cadence(self.every, self.every, 5 * self.every, noise)
        self.panel = Panel(self.model, self.optimizer, cadence)
        with torch.no_grad():
            outputs = self.model(x[:2])
        self.findings = Findings(
            num_steps=self.num_steps,
            batch_size=size,
            guessing=loss_of_guessing(self.loss_fn, outputs, y),
            num_classes=problem.num_classes,
            clip_norm=trial.clip_norm,
            momentum=options["momentum"],
        )

    def run(self) -> list[Any]:
        """Look, train and test; return what is found."""
        findings = self.findings
        if self.trial.looks_first:
            findings.take(preflight(self.model, self.loss_fn, self.batches))
        number = 0
        try:
            for number, values in self._steps():
                findings.note(number, values)
                if "truth/worst_error" in values:
                    findings.check_slopes(number, self.panel.slopes)
        except NotFiniteError as error:
            text = "the step is not finite."
            findings.note_failure(number + 1, text, error.batches)
            return findings.found
        results = self._by_class()
        if results is not None:
            findings.check_confusion(number, *results)
        return findings.found

    def lr(self, step: int) -> float:
        return self.base_lr * self.trial.schedule(step, self.num_steps)

    def _steps(self) -> Scalars:
        yield from self._own_loop() if self.trial.in_own_loop else self._loop()

    def _loop(self) -> Scalars:
        """Yield what is logged of the package's own loop."""
        trial = self.trial
        if trial.forgets_zero_grad:
            self.optimizer.zero_grad = lambda set_to_none=True: None
        for step in train(
            self.model,
            self.optimizer,
            self.batches,
            self.loss_fn,
            epochs=self.epochs,
            lr=self.lr,
            clip_norm=trial.clip_norm,
            autocast=trial.autocast,
            measure_every=max(1, self.every // 4),
            watcher=self.panel,
        ):
            yield step.number, step_scalars(step)
            if step.ends_epoch and step.epoch % max(1, self.epochs // 10) == 0:
                yield step.number, self._test()

    def _own_loop(self) -> Scalars:
        """Yield what a stranger logs of a loop of their own."""
        trial, number, panel = self.trial, 0, self.panel
        names = [tag(GRAD_NORM, name) for name, _ in self.model.named_parameters()]

        def loss_of(batch: Any) -> Tensor:
            return self.loss_fn(self.model(batch[0]), batch[1])

        for epoch in range(1, self.epochs + 1):
            for batch in self.batches.epoch(epoch):
                number += 1
                self.optimizer.param_groups[0]["lr"] = self.lr(number - 1)
                again = functools.partial(loss_of, batch)
                with panel.watch(number, again, num_samples=len(batch[1])) as watch:
                    if not trial.forgets_zero_grad:
                        self.optimizer.zero_grad()
                    loss = loss_of(batch)
                    (trial.loss_scale * loss).backward()
                    each = grad_norms(self.model.parameters())
                    if not math.isfinite(loss.item() + norm(each).item()):
                        self._fail(number, loss.item(), batch)
                    self.optimizer.step()
                norms = zip(
                    (tag(GRAD_NORM, n) for n in names), each.tolist(), strict=True
                )
                values = {TRAIN_LOSS: loss.item(), LR: self.lr(number - 1)}
                values |= {GLOBAL_GRAD_NORM: norm(each).item(), **dict(norms)}
                yield number, values | dict(watch.readings)
            yield number, self._test()

    def _fail(self, number: int, loss: float, batch: Any) -> None:
        raise NotFiniteError(number, loss, math.nan, "", self.base_lr, [batch])

    def _test(self) -> dict[str, float]:
        data, problem = self.data, self.trial.problem
        size = min(1000, len(data.test_inputs))
        test = Batches(data.test_inputs, data.test_targets, size)
        result = evaluate(self.model, test, problem.loss_fn)
        values = {"loss/test": result.loss, "accuracy/test": result.accuracy}
        return {name: value for name, value in values.items() if value == value}

    def _by_class(self) -> tuple[Tensor, Tensor] | None:
        """Return the confusion matrix of the test, and the loss of each class."""
        targets = self.data.test_targets
        outputs = predict(self.model, self.data.test_inputs)
        if targets.is_floating_point() or outputs.dim() != 2:
            return None
        losses = losses_by_class(self.trial.problem.loss_fn, outputs, targets)
        return confusion_matrix(outputs, targets), losses
