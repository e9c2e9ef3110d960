"""A run, made from its settings: its data, model, optimizer and instruments."""

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from minitrain.averaging import WeightAverage
from minitrain.batches import Batches
from minitrain.checks import check_optimizer, check_passes
from minitrain.distributed.group import Group, Single
from minitrain.experiment import source
from minitrain.experiment.data import (
    Data,
    batches_of,
    check_data,
    hold_out,
    num_samples_of,
)
from minitrain.experiment.definition import Definition, definition_of
from minitrain.experiment.machine import find_device, set_threads
from minitrain.experiment.objective import Loss, usual_loss
from minitrain.experiment.parts import Run, count_steps
from minitrain.experiment.settings import Config
from minitrain.experiment.trial import check_normalization, try_drawing, try_out
from minitrain.instruments.findings import Findings
from minitrain.instruments.guessing import loss_of_guessing
from minitrain.instruments.panel import Panel
from minitrain.loading import DatasetBatches
from minitrain.metrics import accuracy
from minitrain.samples import move, part
from minitrain.sgd import SGD
from minitrain.shards import Shards
from minitrain.system.errors import DataError, MinitrainError, SettingsError
from minitrain.vector import ParameterVector

T = TypeVar("T")

TEST_BATCH_SIZE = 1000
"""At most as many samples are evaluated at a time."""

NUM_TARGETS = 256
"""Samples of an indexable data set whose targets tell what guessing gives."""


def build(config: Config, group: Group | Single | None = None) -> Run:
    """Read the data, and make the model and its optimizer from the seed.

    Sets the number of threads and the random state, from which the model draws.

    Args:
        config: The settings.
        group: The processes that share the run; by default there is one.

    Raises:
        DataError: The data are not available.
        SettingsError: The device is not available, the threads are too many, the size
            of a batch is impossible for data or model, or the experiment's functions
            do not belong together.
    """
    group = Single() if group is None else group
    definition = definition_of(config)
    device = find_device(config.device, group.local_rank)
    seed_all(config.seed)
    with group.one_per_machine_first():
        data = read_data(config, definition)
    if config.data.validation:
        data = hold_out(data, config.data.validation, config.seed)
    if config.stop.patience and data.valid is None:
        raise SettingsError(
            f"stop.patience = {config.stop.patience}: a validation set is needed: say "
            "--data.validation 0.1, or have data(...) return Data(valid=...)"
        )
    _check_batch_size(config, data)
    batches = batches_of(
        data.train,
        config.data.batch_size,
        device,
        seed=config.seed,
        workers=config.data.workers,
    )
    seed_all(config.seed)
    model = build_model(config, definition).to(device)
    try_drawing(definition, model, data)
    loss_fn = _loss_of(config, definition)
    metrics = definition.metrics or accuracy
    outputs, number, measured = try_out(definition, model, batches, loss_fn, metrics)
    set_threads(config, number * config.data.batch_size)
    check_normalization(config, model, data.num_samples)
    optimizer = build_optimizer(config, definition, model)
    return Run(
        config=_resolved(config, data, device),
        definition=definition,
        data=data,
        data_sha256=data.sha256(),
        source_sha256=source.sha256(definition.source),
        device=device,
        group=group,
        shards=Shards(config.shards, config.seed, group),
        batches=batches,
        valid_batches=data.valid and _for_evaluation(config, data.valid, device),
        test_batches=_for_evaluation(config, data.test, device),
        model=model,
        loss_fn=loss_fn,
        metrics=metrics,
        metric_names=measured,
        optimizer=optimizer,
        largest_lr=float(optimizer.param_groups[0]["lr"]),
        average=WeightAverage(model, config.ema) if config.ema else None,
        panel=Panel(model, optimizer) if config.instruments.budget else None,
        findings=_findings(config, batches, outputs, loss_fn),
    )


def seed_all(seed: int) -> None:
    """Set every generator that an experiment may draw from."""
    import numpy

    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)


def read_data(config: Config, definition: Definition) -> Data:
    """Return what the experiment's `data` gives.

    Raises:
        DataError: It fails, or gives something else.
    """
    options = _options(config.data, "batch_size", "validation", "workers")
    place = str(definition.path or "the built-in experiment")
    data = _call(definition.data, DataError, **options)
    return check_data(data, place)


def build_model(config: Config, definition: Definition) -> nn.Module:
    """Return the experiment's model, with weights drawn from the present random state.

    Raises:
        SettingsError: It cannot be made.
    """
    model = _call(definition.model, SettingsError, **_options(config.model))
    if not isinstance(model, nn.Module):
        raise SettingsError(
            f"model(...) returned {type(model).__name__}: it must return a "
            "torch.nn.Module"
        )
    return model


def build_optimizer(
    config: Config, definition: Definition, model: nn.Module
) -> Optimizer:
    """Return the optimizer: SGD over a `ParameterVector`, or the experiment's own.

    Raises:
        SettingsError: It cannot be made.
    """
    if definition.optimizer is not None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        options = _options(config.optimizer)
        made = _call(definition.optimizer, SettingsError, parameters, **options)
        try:
            check_optimizer(model, made)
            check_passes(made)
        except (AttributeError, TypeError, ValueError) as error:
            raise SettingsError(
                f"optimizer(...) returns what does not fit: {error}"
            ) from error
        return made
    options = _options(config.optimizer, "decay")
    try:
        if config.optimizer.decay == "all":
            return SGD(ParameterVector(model), **options)
        return SGD(_groups(model), **options)
    except (ValueError, TypeError, RuntimeError) as error:
        raise SettingsError(f"the model cannot be trained: {error}") from error


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    """Return the matrices, and without weight decay all else."""
    groups: list[dict[str, Any]] = []
    names = {n: p.dim() > 1 for n, p in model.named_parameters() if p.requires_grad}
    for is_matrix in (True, False):
        chosen = [name for name, it_is in names.items() if it_is == is_matrix]
        if chosen:
            groups.append({"params": ParameterVector(model, only=chosen)})
            if not is_matrix:
                groups[-1]["weight_decay"] = 0.0
    return groups


def _options(section: Any, *others: str) -> dict[str, Any]:
    """Return the settings of a section that a function takes."""
    return {name: value for name, value in section if name not in others}


def _call(
    function: Callable[..., T],
    kind: type[MinitrainError],
    /,  # whose names are free for the options
    *given: Any,
    **options: Any,
) -> T:
    """Call a function of the experiment.

    Raises:
        MinitrainError: It failed; the message says where.
    """
    try:
        return function(*given, **options)
    except (MinitrainError, MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        if function.__module__.startswith("minitrain."):
            raise  # ours: what fails there is not a mistake of the user's
        what = source.what_failed(error, Path(function.__code__.co_filename))
        raise kind(f"{function.__name__}(...) failed: {what}") from error


def _loss_of(config: Config, definition: Definition) -> Loss:
    if definition.loss is None:
        return usual_loss
    return functools.partial(definition.loss, **_options(config.loss))


def _for_evaluation(
    config: Config, samples: Any, device: torch.device
) -> Batches | DatasetBatches:
    size = min(TEST_BATCH_SIZE, num_samples_of(samples))
    return batches_of(samples, size, device, workers=config.data.workers)


def _check_batch_size(config: Config, data: Data) -> None:
    size, num_samples = config.data.batch_size, data.num_samples
    if size > num_samples:
        raise SettingsError(
            f"data.batch-size = {size}: must be at most the number of samples to train "
            f"on, {num_samples}"
        )


def _resolved(config: Config, data: Data, device: torch.device) -> Config:
    """Return the settings with what is used in the place of automatic choices."""
    update: dict[str, Any] = {
        "device": str(device),
        "threads": torch.get_num_threads(),
    }
    if data.name and "name" in type(config.data).model_fields:
        update["data"] = config.data.model_copy(update={"name": data.name})
    return config.model_copy(update=update)


def _findings(
    config: Config, batches: Batches | DatasetBatches, outputs: Any, loss_fn: Loss
) -> Findings:
    """Return what looks at the readings of the run, and knows what guessing gives."""
    if isinstance(batches, Batches):
        targets = batches.targets
    else:  # made here, where the outputs may not be
        _, targets = move(batches.first(NUM_TARGETS), find_device(config.device))
    has_classes = bool(accuracy(outputs, part(targets, 0, 2)))
    return Findings(
        num_steps=count_steps(config, batches),
        batch_size=config.data.batch_size * config.accumulate,
        guessing=loss_of_guessing(loss_fn, outputs, targets),
        num_classes=outputs.shape[1] if has_classes else None,
        clip_norm=config.clip_norm,
        momentum=getattr(config.optimizer, "momentum", 0.0),
        as_flags=True,
    )
