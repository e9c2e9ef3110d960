"""One experiment from its settings to its summary: where the parts are put together."""

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from minitrain import checkpoint, data, models
from minitrain.batches import Batches
from minitrain.cadence import Cadence
from minitrain.config import Config, ModelSettings, from_toml
from minitrain.errors import CheckpointError, DataError, SettingsError, Stopped
from minitrain.evaluation import (
    confusion_matrix,
    evaluate,
    evaluating,
    predict,
    worst_mistakes,
)
from minitrain.findings import Findings
from minitrain.fingerprint import fingerprint
from minitrain.instruments import log2_counts
from minitrain.panel import Panel
from minitrain.randomness import RandomStates
from minitrain.report import (
    Summary,
    dashboard,
    epoch_line,
    epoch_scalars,
    recording,
    result,
    say,
    shown,
    tell,
)
from minitrain.saving import Saver, Stateful, finished_summary, restore
from minitrain.schedules import SCHEDULES, warmup
from minitrain.sgd import SGD
from minitrain.sharpness import sharpness
from minitrain.signals import Stop
from minitrain.storage import check_unused, create_folder, locked
from minitrain.tensorboard import Board, step_scalars
from minitrain.training import Step, train
from minitrain.vector import ParameterVector

NUM_MISTAKES = 24


def run(
    config: Config, started: float | None = None, stop: Stop | None = None
) -> Summary:
    """Train and test one model as the settings say.

    The run directory receives `config.toml`, TensorBoard's event file, checkpoints and,
    at the end, however that comes, `summary.json`. `started` is when the process
    started, by `time.perf_counter()`; `stop` knows of signals that ask the run to end.

    Raises a MinitrainError where settings, data or run directory do not allow it, and
    `Stopped` where a signal ended the run, after everything was saved.
    """
    started = time.perf_counter() if started is None else started
    stop = Stop() if stop is None else stop
    if not config.resume:
        check_unused(config.run_dir)
    parts = prepare(config)
    config, dataset, model, optimizer, panel, findings = parts[:6]
    name = f"{dataset.name}-{config.model.name}-seed{config.seed}"
    folder = create_folder(config.run_dir, name)
    summary = Summary(dataset.name, config.seed)

    with locked(folder):
        start = None
        if config.resume:
            start, config = restore(config, folder, parts.restore, summary)
        finished = finished_summary(folder)
        if finished is not None and start == finished.steps == parts.num_steps:
            say(f"{folder} is finished: nothing is left to do")
            return finished
        if panel is not None:
            config = with_cadence(config, parts, panel)
        with (
            stop,
            recording(
                config,
                summary,
                folder,
                started,
                lambda: fingerprint(model.state_dict(), optimizer.state_dict()),
            ),
            dashboard(config, folder, start, summary, findings) as board,
            tqdm(
                total=parts.num_steps, desc=dataset.name, unit="step", disable=None
            ) as bar,
        ):
            saver = Saver(config, folder, parts.state, summary, start)
            if start is None:
                board.sync()
                saver.save(must_succeed=True)
                sample = parts.batches.inputs[:1000]
                size = sample.mean().item(), sample.std().item()
                tell(summary, findings.check_inputs(*size))
            bar.update(summary.steps)
            num_samples, epoch_seconds = 0, 0.0
            for step, seconds in _timed(parts.train(start or 0), model):
                summary.steps = step.number
                summary.train_seconds += seconds
                num_samples += step.num_samples
                epoch_seconds += seconds
                if values := step_scalars(step):
                    board.log(step.number, values)
                    tell(summary, findings.note(step.number, values))
                if panel is not None and "truth/worst_error" in step.readings:
                    tell(summary, findings.check_slopes(step.number, panel.slopes))
                board.beat()
                if bar.update():
                    bar.set_postfix(shown(step, summary), refresh=False)
                if step.ends_epoch:
                    board.flush()
                    test = evaluate(model, parts.test_batches, parts.loss_fn)
                    summary.note(step, test)
                    rate = num_samples / epoch_seconds
                    values = epoch_scalars(test, rate)
                    board.log(step.number, values)
                    tell(summary, findings.note(step.number, values))
                    board.log(step.number, _epoch_readings(parts, summary))
                    if config.instruments.histograms:
                        _draw_histograms(parts, board, step.number)
                    say(epoch_line(step, summary, config.epochs, epoch_seconds))
                    num_samples, epoch_seconds = 0, 0.0
                is_due = step.number % config.checkpoint.every == 0
                if is_due or step.ends_epoch or stop.received:
                    board.sync()
                    is_last = step.number == parts.num_steps or bool(stop.received)
                    saver.save(must_succeed=is_last)
                if stop.received:
                    raise Stopped(stop.received)
            _draw(parts, board, summary.steps)
    say(result(summary, folder))
    return summary


class Parts(NamedTuple):
    """What a run is made of: all that its settings determine before the first step."""

    config: Config
    """The settings, with what is used in the place of automatic choices."""
    dataset: data.Dataset
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
            autocast=_autocast(config),
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
            autocast=_autocast(config),
        )
        given = {
            kind: getattr(measured, kind) if n is None else n
            for kind, n in given.items()
        }
    panel.cadence = Cadence(**given)
    return config.model_copy(update={"instruments": settings.model_copy(update=given)})


def _epoch_readings(parts: Parts, summary: Summary) -> dict[str, float]:
    """What is measured at the end of an epoch, besides the test."""
    readings: dict[str, float] = {}
    if parts.panel is not None:
        readings["cost/panel"] = parts.panel.seconds / summary.train_seconds
    if parts.config.instruments.sharpness:
        sample = parts.batches.inputs[:512], parts.batches.targets[:512]
        with evaluating(parts.model):
            value = sharpness(parts.model, *sample, parts.loss_fn)
        readings["sharpness/largest_eigenvalue"] = value
        readings["sharpness/2_over_lr"] = 2 / parts.optimizer.param_groups[0]["lr"]
    return readings


def _draw_histograms(parts: Parts, board: Board, step: int) -> None:
    """How large the elements of each parameter's gradient are, as log2 |g|."""
    for name, parameter in parts.model.named_parameters():
        if parameter.grad is not None:
            counts = log2_counts(parameter.grad).tolist()
            board.histogram(f"grad_log2/{name}", counts, step)


def _draw(parts: Parts, board: Board, step: int) -> None:
    """The pictures at the end: what the model confuses, and what it looks for."""
    from minitrain import figures  # with matplotlib, which no run needs earlier

    dataset, targets = parts.dataset, parts.test_batches.targets
    logits = predict(parts.model, parts.test_batches.inputs)
    mistakes = worst_mistakes(logits, targets, NUM_MISTAKES)
    confusion = confusion_matrix(logits, targets)
    weights = next(parts.model.parameters())
    side = 28 if weights.dim() == 2 else weights.shape[-1]
    pictures = {
        "mistakes/test": figures.draw_mistakes(
            dataset.test.images, mistakes, dataset.classes
        ),
        "confusion/test": figures.draw_confusion(confusion, dataset.classes),
        "weights/first_layer": figures.draw_weights(weights.reshape(-1, side, side)),
    }
    for tag, png in pictures.items():
        board.image(tag, png, step)


def load(run_dir: Path | str) -> nn.Module:
    """The trained model of a run, from its newest intact checkpoint, ready to predict.

    It takes images as `Dataset.inputs` gives them, (N, 1, 28, 28), to logits (N, 10).

    Raises CheckpointError where the run has no intact checkpoint.
    """
    folder = Path(run_dir) / "checkpoints"
    found, _ = checkpoint.newest(folder)
    if found is None:
        raise CheckpointError(f"{folder} holds no checkpoint")
    model = build_model(from_toml(found.state["settings"]).model)
    model.load_state_dict(found.state["model"])
    return model.eval()


def build_model(settings: ModelSettings) -> nn.Module:
    """The model of this name, with new random weights."""
    if settings.name == "softmax":
        return models.SoftmaxRegression()
    if settings.name == "mlp":
        return models.MLP(hidden=settings.hidden, dropout=settings.dropout)
    if settings.name == "cnn":
        return models.CNN(dropout=settings.dropout)
    return models.FastCNN()


def learning_rate(config: Config, num_steps: int) -> Callable[[int], float]:
    """The learning rate as a function of the number of completed updates."""
    schedule = SCHEDULES[config.schedule.name]

    def lr(step: int) -> float:
        factor = schedule(step, num_steps) * warmup(step, config.schedule.warmup)
        return config.optimizer.lr * factor

    return lr


def _autocast(config: Config) -> torch.dtype | None:
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


def _load(config: Config) -> data.Dataset:
    if config.data.name != "auto":
        return data.load(config.data.name, config.data.root)
    try:
        return data.load("mnist", config.data.root)
    except DataError as error:
        line = "*" * 72
        print(
            f"{error}\n{line}\n"
            "MNIST cannot be had: training on `digits`, drawn here, in its place.\n"
            f"{line}"
        )
        return data.load("digits", config.data.root)


def _resolved(config: Config, dataset: str, device: torch.device) -> Config:
    """The settings with what was actually used in the place of automatic choices."""
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"name": dataset}),
            "device": str(device),
            "threads": torch.get_num_threads(),
        }
    )


def _timed(steps: Iterable[Step], model: nn.Module) -> Iterator[tuple[Step, float]]:
    """Every step with the seconds it took, without those of the caller's own work."""
    device = next(model.parameters()).device
    start = time.perf_counter()
    for step in steps:
        if step.ends_epoch and device.type != "cpu":
            torch.accelerator.synchronize(device)  # what is queued counts as training
        yield step, time.perf_counter() - start
        start = time.perf_counter()
