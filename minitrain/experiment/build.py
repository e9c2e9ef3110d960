"""The parts of a run, made from its settings."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from minitrain.batches import Batches
from minitrain.datasets.dataset import Dataset
from minitrain.experiment.builtin import build_model, load_data
from minitrain.experiment.settings import Config
from minitrain.instruments.cadence import Cadence
from minitrain.instruments.findings import Findings
from minitrain.instruments.panel import Panel
from minitrain.randomness import RandomStates
from minitrain.runs.saver import Stateful
from minitrain.schedules import SCHEDULES, warmup
from minitrain.sgd import SGD
from minitrain.system.errors import DataError, SettingsError
from minitrain.training import Step, train
from minitrain.vector import ParameterVector


class Parts(NamedTuple):
    """What a run is made of: all that its settings determine before the first step."""

    config: Config
    """The settings, with what is used in the place of automatic choices."""
    dataset: Dataset
    model: nn.Module
    optimizer: SGD
    panel: Panel | None
    findings: Findings
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    batches: Batches
    test_batches: Batches
    num_steps: int

    @property
    def state(self) -> dict[str, Stateful]:
        """What a checkpoint has to hold besides settings and summary."""
        named = {
            "model": self.model,
            "optimizer": self.optimizer,
            "panel": self.panel,
            "findings": self.findings,
            "random": RandomStates(self.batches.inputs.device),
        }
        return {name: part for name, part in named.items() if part is not None}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a checkpoint, with the options of the settings."""
        for name, part in self.state.items():
            if name in state:  # a panel may be new
                part.load_state_dict(state[name])
        for group in self.optimizer.param_groups:  # lr stays: the schedule sets it
            group.update(self.config.optimizer.model_dump(exclude={"lr"}))

    def train(self, start: int = 0) -> Iterator[Step]:
        """The steps after the first `start` ones, whose state was restored before."""
        config = self.config
        return train(
            self.model,
            self.optimizer,
            self.batches,
            self.loss_fn,
            epochs=config.epochs,
            lr=learning_rate(config, self.num_steps),
            clip_norm=config.clip_norm,
            accumulate=config.accumulate,
            autocast=autocast_of(config),
            measure_every=config.log.every,
            start=start,
            watcher=self.panel,
        )


def prepare(config: Config) -> Parts:
    """Read the data, and make the model and its optimizer from the seed.

    Sets the number of threads and the random state, from which the model draws.

    Raises DataError or SettingsError where data or device cannot be had.
    """
    device = _device(config.device)
    dataset = _load(config)
    train_inputs, test_inputs = (
        dataset.inputs(examples, device) for examples in (dataset.train, dataset.test)
    )
    batches = Batches(
        train_inputs,
        dataset.train.labels.to(device),
        config.data.batch_size,
        seed=config.seed,
    )
    test_batches = Batches(
        test_inputs, dataset.test.labels.to(device), min(1000, len(test_inputs))
    )
    if config.threads or config.model.name != "cnn":
        # Threads that wait for each other burn a core; on a busy machine they stall.
        torch.set_num_threads(config.threads or 1)
    torch.manual_seed(config.seed)
    model = build_model(config.model).to(device)
    optimizer = SGD(ParameterVector(model), **config.optimizer.model_dump())
    num_steps = config.epochs * -(-len(batches) // config.accumulate)
    config = _resolved(config, dataset.name, device)
    panel = Panel(model, optimizer) if config.instruments.budget else None
    findings = Findings(
        num_steps=num_steps,
        batch_size=config.data.batch_size * config.accumulate,
        num_classes=len(dataset.classes),
        clip_norm=config.clip_norm,
    )
    loss_fn = functools.partial(
        nn.functional.cross_entropy, label_smoothing=config.loss.label_smoothing
    )
    return Parts(
        config,
        dataset,
        model,
        optimizer,
        panel,
        findings,
        loss_fn,
        batches,
        test_batches,
        num_steps,
    )


def with_cadence(config: Config, parts: Parts, panel: Panel) -> Config:
    """Give the panel its cadence, measured now where the settings leave it open.

    The settings returned have the numbers, so that the run keeps them when it resumes.
    """
    settings = config.instruments
    given = {kind: getattr(settings, kind) for kind in Cadence._fields}
    if None in given.values():
        inputs, targets = next(iter(parts.batches.epoch(1)))
        measured = panel.fit(
            lambda: parts.loss_fn(parts.model(inputs), targets),
            len(targets),
            settings.budget,
            unit=config.log.every,
            autocast=autocast_of(config),
        )
        given = {
            kind: getattr(measured, kind) if n is None else n
            for kind, n in given.items()
        }
    panel.cadence = Cadence(**given)
    return config.model_copy(update={"instruments": settings.model_copy(update=given)})


def learning_rate(config: Config, num_steps: int) -> Callable[[int], float]:
    """The learning rate as a function of the number of completed updates."""
    schedule = SCHEDULES[config.schedule.name]

    def lr(step: int) -> float:
        factor = schedule(step, num_steps) * warmup(step, config.schedule.warmup)
        return config.optimizer.lr * factor

    return lr


def autocast_of(config: Config) -> torch.dtype | None:
    return torch.bfloat16 if config.precision == "bfloat16" else None


def _device(name: str) -> torch.device:
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(
            f"device = {name!r}: not available here: {reason}"
        ) from None


def _load(config: Config) -> Dataset:
    if config.data.name != "auto":
        return load_data(config.data.name, config.data.root)
    try:
        return load_data("mnist", config.data.root)
    except DataError as error:
        line = "*" * 72
        print(
            f"{error}\n{line}\n"
            "MNIST cannot be had: training on `digits`, drawn here, in its place.\n"
            f"{line}"
        )
        return load_data("digits", config.data.root)


def _resolved(config: Config, dataset: str, device: torch.device) -> Config:
    """The settings with what was actually used in the place of automatic choices."""
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"name": dataset}),
            "device": str(device),
            "threads": torch.get_num_threads(),
        }
    )
