"""A run, made from its settings: its data, model, optimizer and instruments."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minitrain.batches import Batches
from minitrain.datasets.dataset import Dataset
from minitrain.experiment.builtin import (
    build_model,
    check_batches,
    default_threads,
    load_data,
)
from minitrain.experiment.reading import flatten, free_keys, from_toml
from minitrain.experiment.settings import Config
from minitrain.experiment.state import check_vectors, load_weights
from minitrain.fingerprint import fingerprint
from minitrain.instruments.cadence import Cadence
from minitrain.instruments.findings import Findings
from minitrain.instruments.guessing import loss_of_guessing
from minitrain.instruments.panel import Panel
from minitrain.randomness import RandomStates
from minitrain.runs.checkpoint import Checkpoint
from minitrain.runs.resume import Change, changes
from minitrain.runs.saver import Stateful
from minitrain.runs.summary import Summary, installed_versions
from minitrain.schedules import SCHEDULES, warmup
from minitrain.sgd import SGD
from minitrain.system.errors import CheckpointError, SettingsError
from minitrain.training import Step, train
from minitrain.vector import ParameterVector

DATA = "data.sha256"
"""Stands among the settings for the content of the data, which is part of a run too."""

THREADS_PER_CORE = 16
"""With more than these a machine does nothing but change between them."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """All that settings and data determine of a run, before its first step."""

    config: Config
    """The settings, with what is used in the place of automatic choices."""
    dataset: Dataset
    data_sha256: str
    """SHA-256 over the tensors of the data set."""
    batches: Batches
    test_batches: Batches
    model: nn.Module
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    optimizer: SGD
    panel: Panel | None
    findings: Findings

    @property
    def name(self) -> str:
        """What its folder is called, if by no other name."""
        config = self.config
        return f"{config.data.name}-{config.model.name}-seed{config.seed}"

    @property
    def num_steps(self) -> int:
        """The updates of the whole run."""
        return count_steps(self.config, self.batches)

    def fingerprint(self) -> str:
        """Return the SHA-256 over all parameters and the optimizer's state."""
        return fingerprint(self.model.state_dict(), self.optimizer.state_dict())

    def new_summary(self) -> Summary:
        """Return the summary of a run that has made no step."""
        name, seed = self.config.data.name, self.config.seed
        return Summary(dataset=name, seed=seed, data_sha256=self.data_sha256)

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

    def changes_since(self, found: Checkpoint) -> list[Change]:
        """Return what differs from the run as it was when a checkpoint was saved."""
        summary, versions = found.state["summary"], installed_versions()
        before = flatten(from_toml(found.state["settings"]))
        now = flatten(self.config)
        free = free_keys(before, now) | versions.keys()
        before |= {DATA: summary.get("data_sha256"), **summary["versions"]}
        return changes(before, now | {DATA: self.data_sha256, **versions}, free)

    def with_config(self, config: Config) -> "Run":
        """Return the same run with other settings, of those that it is not made of."""
        return dataclasses.replace(self, config=config)

    def restore(self, found: Checkpoint) -> None:
        """Continue from a checkpoint, with the options of the settings.

        Raises:
            CheckpointError: Its state does not fit the parts.
        """
        try:
            load_weights(self.model, found.state["model"])
            if "panel" in found.state:
                groups = self.optimizer.param_groups
                parameters = [p for group in groups for p in group["params"]]
                check_vectors(found.state["panel"], parameters)
            for name, part in self.state.items():
                if name != "model" and name in found.state:  # a panel may be new
                    part.load_state_dict(found.state[name])
        except (RuntimeError, ValueError, TypeError, LookupError) as error:
            raise CheckpointError(
                f"{found.path} does not fit the model that the settings describe"
            ) from error
        for group in self.optimizer.param_groups:  # lr stays: the schedule sets it
            group.update(self.config.optimizer.model_dump(exclude={"lr"}))

    def train(self, start: int = 0) -> Iterator[Step]:
        """Yield the steps after the first `start` ones, whose state was restored."""
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


def build(config: Config) -> Run:
    """Read the data, and make the model and its optimizer from the seed.

    Sets the number of threads and the random state, from which the model draws.

    Raises:
        DataError: The data cannot be had.
        SettingsError: The device is not available, the threads are too many, or the
            size of a batch is impossible for data or model.
    """
    device = _device(config.device)
    dataset = load_data(config.data.name, config.data.root)
    batches, test_batches = _batches(config, dataset, device)
    _set_threads(config)
    torch.manual_seed(config.seed)
    model = build_model(config.model).to(device)
    optimizer = SGD(ParameterVector(model), **config.optimizer.model_dump())
    loss_fn = functools.partial(
        nn.functional.cross_entropy, label_smoothing=config.loss.label_smoothing
    )
    outputs = torch.zeros(1, len(dataset.classes))
    return Run(
        config=_resolved(config, dataset.name, device),
        dataset=dataset,
        data_sha256=fingerprint({"train": dataset.train, "test": dataset.test}),
        batches=batches,
        test_batches=test_batches,
        model=model,
        loss_fn=loss_fn,
        optimizer=optimizer,
        panel=Panel(model, optimizer) if config.instruments.budget else None,
        findings=Findings(
            num_steps=count_steps(config, batches),
            batch_size=config.data.batch_size * config.accumulate,
            guessing=loss_of_guessing(loss_fn, outputs, dataset.train.labels),
            num_classes=len(dataset.classes),
            clip_norm=config.clip_norm,
            momentum=config.optimizer.momentum,
            as_flags=True,
        ),
    )


def with_cadence(run: Run) -> Run:
    """Give the panel its cadence, measured now where the settings leave it open.

    Returns:
        The run with the cadence in its settings, so that it is kept when it resumes.
    """
    config, panel = run.config, run.panel
    if panel is None:
        return run
    settings = config.instruments
    given = {kind: getattr(settings, kind) for kind in Cadence._fields}
    if None in given.values():
        inputs, targets = next(iter(run.batches.epoch(1)))
        measured = panel.fit(
            lambda: run.loss_fn(run.model(inputs), targets),
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
    settings = settings.model_copy(update=given)
    return run.with_config(config.model_copy(update={"instruments": settings}))


def count_steps(config: Config, batches: Batches) -> int:
    """Return the updates of the whole run: a window of batches, to the last, is one."""
    return config.epochs * -(-len(batches) // config.accumulate)


def learning_rate(config: Config, num_steps: int) -> Callable[[int], float]:
    """Return the learning rate as a function of the number of completed updates."""
    schedule = SCHEDULES[config.schedule.name]

    def lr(step: int) -> float:
        factor = schedule(step, num_steps) * warmup(step, config.schedule.warmup)
        return config.optimizer.lr * factor

    return lr


def autocast_of(config: Config) -> torch.dtype | None:
    """Return the dtype of the forward pass, where it is not that of the parameters."""
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


def _set_threads(config: Config) -> None:
    most = THREADS_PER_CORE * (os.cpu_count() or 1)
    threads = config.threads or default_threads(config.model)
    if threads is not None and threads > most:
        raise SettingsError(
            f"threads = {threads}: must be at most {most} here, {THREADS_PER_CORE} for "
            "each core"
        )
    if threads is not None:
        torch.set_num_threads(threads)


def _batches(
    config: Config, dataset: Dataset, device: torch.device
) -> tuple[Batches, Batches]:
    """Return the batches to train on, and those to test on."""
    num_samples, size = len(dataset.train.labels), config.data.batch_size
    if size > num_samples:
        raise SettingsError(
            f"data.batch-size = {size}: must be at most the number of samples to train "
            f"on, {num_samples}"
        )
    check_batches(config.model, num_samples, size)
    train_inputs, test_inputs = (
        dataset.inputs(examples, device) for examples in (dataset.train, dataset.test)
    )
    test_labels = dataset.test.labels.to(device)
    return (
        Batches(train_inputs, dataset.train.labels.to(device), size, seed=config.seed),
        Batches(test_inputs, test_labels, min(1000, len(test_inputs))),
    )


def _resolved(config: Config, dataset: str, device: torch.device) -> Config:
    """Return the settings with what is used in the place of automatic choices."""
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"name": dataset}),
            "device": str(device),
            "threads": torch.get_num_threads(),
        }
    )
