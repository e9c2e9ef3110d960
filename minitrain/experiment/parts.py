"""The parts of a run, before its first step and after a restart."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from minitrain.averaging import WeightAverage
from minitrain.batches import Batches
from minitrain.distributed.group import Group, Single
from minitrain.epochs import size_of
from minitrain.experiment.data import Data
from minitrain.experiment.definition import Definition
from minitrain.experiment.objective import Loss
from minitrain.experiment.reading import flatten, free_keys, from_toml
from minitrain.experiment.settings import Config
from minitrain.experiment.state import check_vectors, load_weights
from minitrain.fingerprint import fingerprint
from minitrain.instruments.cadence import Cadence
from minitrain.instruments.findings import Findings
from minitrain.instruments.panel import Panel
from minitrain.loading import DatasetBatches
from minitrain.metrics import Metrics
from minitrain.randomness import RandomStates
from minitrain.runs.checkpoint import Checkpoint
from minitrain.runs.resume import Change, changes
from minitrain.runs.saver import Stateful
from minitrain.runs.summary import Summary, installed_versions
from minitrain.samples import move
from minitrain.schedules import SCHEDULES, warmup
from minitrain.shards import Shards
from minitrain.system.errors import CheckpointError, GroupError
from minitrain.training import Step, train

DATA, SOURCE = "data.sha256", "source.sha256"
"""Stand among the settings for data and source, which are parts of a run too."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """All that settings, source and data determine of a run, before its first step."""

    config: Config
    """The settings, with what is used in the place of automatic choices."""
    definition: Definition
    data: Data
    data_sha256: str
    source_sha256: str
    device: torch.device
    group: Group | Single
    """The processes that share the run."""
    shards: Shards
    batches: Batches | DatasetBatches
    valid_batches: Batches | DatasetBatches | None
    test_batches: Batches | DatasetBatches
    model: nn.Module
    loss_fn: Loss
    metrics: Metrics
    metric_names: Sequence[str]
    """What the metrics are called, in their order."""
    optimizer: Optimizer
    largest_lr: float
    """The learning rate that the schedule multiplies: that of the first group."""
    average: WeightAverage | None
    panel: Panel | None
    findings: Findings

    @property
    def dataset(self) -> str:
        """What the data are called."""
        return self.data.name or self.definition.name

    @property
    def name(self) -> str:
        """What its folder is called, if by no other name."""
        model = getattr(self.config.model, "name", None)
        parts = self.dataset, model, f"seed{self.config.seed}"
        return "-".join(str(part) for part in parts if part)

    @property
    def num_steps(self) -> int:
        """The updates of the whole run."""
        return count_steps(self.config, self.batches)

    def fingerprint(self) -> str:
        """Return the SHA-256 over all parameters and the optimizer's state."""
        return fingerprint(self.model.state_dict(), self.optimizer.state_dict())

    def check_experiment(self) -> None:
        """Make sure that all processes that share the run make the same of it.

        Raises:
            SettingsError: Settings, source, data, versions or first state differ.
        """
        if isinstance(self.group, Single):
            return
        hashes = {DATA: self.data_sha256, SOURCE: self.source_sha256}
        state = {"device": self.device.type, "fingerprint": self.fingerprint()}
        settings = flatten(self.config)
        del settings["device"]  # each may have one of its own
        known = installed_versions() | hashes | settings | state
        self.group.check_equal("the experiments", known)

    def check_agreement(self, step: int) -> None:
        """Make sure that all processes have the same state after a step.

        Raises:
            GroupError: They have not.
        """
        if self.group.world_size == 1:
            return
        of_all = self.group.gather_objects(self.fingerprint())
        other = [rank for rank, own in enumerate(of_all) if own != of_all[0]]
        if other:
            raise GroupError(
                f"after step {step} the parameters of rank {other[0]} are not those of "
                "rank 0: are model and loss functions of their inputs alone, and the "
                "machines of one type?"
            )

    def new_summary(self) -> Summary:
        """Return the summary of a run that has made no step."""
        return Summary(
            dataset=self.dataset,
            seed=self.config.seed,
            data_sha256=self.data_sha256,
            source_sha256=self.source_sha256,
        )

    @property
    def state(self) -> dict[str, Stateful]:
        """What a checkpoint has to hold besides settings and summary."""
        named = {
            "model": self.model,
            "optimizer": self.optimizer,
            "average": self.average,
            "panel": self.panel,
            "findings": self.findings,
            "random": RandomStates(self.device),
        }
        return {name: part for name, part in named.items() if part is not None}

    def changes_since(self, found: Checkpoint) -> list[Change]:
        """Return what differs from the run as it was when a checkpoint was saved."""
        summary, versions = found.state["summary"], installed_versions()
        before = flatten(from_toml(found.state["settings"], self.definition))
        now = flatten(self.config)
        free = free_keys(before, now) | versions.keys()
        for key, name in ((DATA, "data_sha256"), (SOURCE, "source_sha256")):
            before[key], now[key] = summary[name], getattr(self, name)
        return changes(before | summary["versions"], now | versions, free)

    def with_config(self, config: Config) -> "Run":
        """Return the same run with other settings, of those that it is not made of."""
        return dataclasses.replace(self, config=config)

    def restore(self, found: Checkpoint) -> None:
        """Continue from a checkpoint, with the options of the settings.

        Raises:
            CheckpointError: Its state does not fit the parts.
        """
        fresh = [{**group} for group in self.optimizer.param_groups]
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
        has_many_lrs = len({float(group["lr"]) for group in fresh}) > 1
        for group, options in zip(self.optimizer.param_groups, fresh, strict=True):
            kept = {"params": group["params"]}
            if not has_many_lrs:  # else the loop needs them in their proportion
                kept["lr"] = group["lr"]
            group.update(options | kept)

    def train(self, start: int = 0) -> Iterator[Step]:
        """Yield the steps after the first `start` ones, whose state was restored."""
        config = self.config
        return train(
            self.model,
            self.optimizer,
            self.batches,
            self.loss_fn,
            epochs=config.epochs,
            lr=self.lr,
            clip_norm=config.clip_norm,
            accumulate=config.accumulate,
            autocast=autocast_of(config),
            measure_every=config.log.every,
            start=start,
            watcher=self.panel,
            shards=self.shards,
        )

    def lr(self, step: int) -> float:
        """Return the learning rate as a function of the number of completed updates."""
        schedule = SCHEDULES[self.config.schedule.name]
        first = warmup(step, self.config.schedule.warmup)
        return self.largest_lr * (schedule(step, self.num_steps) * first)


def with_cadence(run: Run) -> Run:
    """Give the panel its cadence, measured now where the settings leave it open.

    Returns:
        The run with the cadence in its settings, so that it is kept when it resumes.
    """
    config, panel = run.config, run.panel
    if panel is None:
        return run
    given = run.group.share(_cadence(run, panel) if run.group.rank == 0 else {})
    panel.cadence = Cadence(**given)
    settings = config.instruments.model_copy(update=given)
    return run.with_config(config.model_copy(update={"instruments": settings}))


def _cadence(run: Run, panel: Panel) -> dict[str, int]:
    """Return how often each kind reads: as the settings say, or else as measured."""
    config = run.config
    settings = config.instruments
    given = {kind: getattr(settings, kind) for kind in Cadence._fields}
    if None in given.values():
        batch = next(iter(run.batches.epoch(1)))
        inputs, targets = move(batch, run.device)
        measured = panel.fit(
            lambda: run.loss_fn(run.model(inputs), targets),
            size_of(batch),
            settings.budget,
            unit=config.log.every,
            autocast=autocast_of(config),
        )
        given = {
            kind: getattr(measured, kind) if n is None else n
            for kind, n in given.items()
        }
    return given


def count_steps(config: Config, batches: Batches | DatasetBatches) -> int:
    """Return the updates of the whole run: a window of batches, to the last, is one."""
    return config.epochs * -(-len(batches) // config.accumulate)


def autocast_of(config: Config) -> torch.dtype | None:
    """Return the dtype of the forward pass, where it is not that of the parameters."""
    return torch.bfloat16 if config.precision == "bfloat16" else None
