"""One experiment from its settings to its summary: where the parts are put together."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from minitrain.evaluation import (
    confusion_matrix,
    evaluate,
    evaluating,
    predict,
    worst_mistakes,
)
from minitrain.experiment.build import Parts, prepare, with_cadence
from minitrain.experiment.builtin import build_model
from minitrain.experiment.reading import from_toml, to_toml
from minitrain.experiment.report import (
    dashboard,
    epoch_line,
    epoch_scalars,
    recording,
    result,
    shown,
    tell,
)
from minitrain.experiment.resume import restore
from minitrain.experiment.settings import Config
from minitrain.fingerprint import fingerprint
from minitrain.instruments.readings import log2_counts
from minitrain.instruments.sharpness import sharpness
from minitrain.runs import checkpoint
from minitrain.runs.board import Board
from minitrain.runs.folder import check_unused, create_folder
from minitrain.runs.saver import Saver
from minitrain.runs.summary import Summary, finished_summary
from minitrain.runs.tags import step_scalars
from minitrain.system.errors import CheckpointError, Stopped
from minitrain.system.lock import locked
from minitrain.system.signals import Stop
from minitrain.system.terminal import say
from minitrain.training import Step

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
            saver = Saver(
                folder,
                parts.state,
                summary,
                settings=to_toml(config),
                keep=config.checkpoint.keep,
                last_saved=start,
            )
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
    from minitrain.pictures import classes  # with matplotlib: no run needs it earlier

    dataset, targets = parts.dataset, parts.test_batches.targets
    logits = predict(parts.model, parts.test_batches.inputs)
    mistakes = worst_mistakes(logits, targets, NUM_MISTAKES)
    confusion = confusion_matrix(logits, targets)
    weights = next(parts.model.parameters())
    pictures = {
        "mistakes/test": classes.draw_mistakes(
            dataset.test.images, mistakes, dataset.classes
        ),
        "confusion/test": classes.draw_confusion(confusion, dataset.classes),
        "weights/first_layer": classes.draw_weights(
            weights, dataset.test.images.shape[1:]
        ),
    }
    for tag, png in pictures.items():
        board.image(tag, png, step)


def _timed(steps: Iterable[Step], model: nn.Module) -> Iterator[tuple[Step, float]]:
    """Every step with the seconds it took, without those of the caller's own work."""
    device = next(model.parameters()).device
    start = time.perf_counter()
    for step in steps:
        if step.ends_epoch and device.type != "cpu":
            torch.accelerator.synchronize(device)  # what is queued counts as training
        yield step, time.perf_counter() - start
        start = time.perf_counter()


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
