"""One experiment from its settings to its summary: where the parts are put together."""

import functools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from minitrain import checkpoint, data, models
from minitrain.config import Config, ModelSettings, changes, from_toml, to_toml
from minitrain.errors import (
    CheckpointError,
    DataError,
    NotFiniteError,
    SettingsError,
    Stopped,
    StorageError,
)
from minitrain.instruments import Mistake, fingerprint, worst_mistakes
from minitrain.report import (
    Summary,
    dashboard,
    epoch_line,
    epoch_scalars,
    recording,
    result,
    say,
    shown,
)
from minitrain.schedules import SCHEDULES, warmup
from minitrain.sgd import SGD
from minitrain.signals import Stop
from minitrain.storage import check_unused, create_folder, locked
from minitrain.tensorboard import step_scalars
from minitrain.training import Step, evaluate, predict, train
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
    device = _device(config.device)
    dataset = _load(config)
    inputs = dataset.inputs(dataset.train, device)
    labels = dataset.train.labels.to(device)
    batches = data.Batches(inputs, labels, config.data.batch_size, seed=config.seed)
    test_inputs = dataset.inputs(dataset.test, device)
    test_labels = dataset.test.labels.to(device)
    test_batches = data.Batches(test_inputs, test_labels, min(1000, len(test_inputs)))

    if config.threads or config.model.name != "cnn":
        # Threads that wait for each other burn a core; on a busy machine they stall.
        torch.set_num_threads(config.threads or 1)
    torch.manual_seed(config.seed)
    model = build_model(config.model).to(device)
    optimizer = SGD(ParameterVector(model), **config.optimizer.model_dump())
    loss_fn = functools.partial(
        nn.functional.cross_entropy, label_smoothing=config.loss.label_smoothing
    )
    num_steps = config.epochs * -(-len(batches) // config.accumulate)
    config = _resolved(config, dataset.name, device)
    name = f"{config.data.name}-{config.model.name}-seed{config.seed}"
    folder = create_folder(config.run_dir, name)
    summary = Summary(dataset.name, config.seed)

    with locked(folder):
        start = _resume(config, folder, model, optimizer, summary)
        finished = _finished(folder)
        if finished is not None and start == finished.steps == num_steps:
            say(f"{folder} is finished: nothing is left to do")
            return finished
        steps = train(
            model,
            optimizer,
            batches,
            loss_fn,
            epochs=config.epochs,
            lr=learning_rate(config, num_steps),
            clip_norm=config.clip_norm,
            accumulate=config.accumulate,
            autocast=torch.bfloat16 if config.precision == "bfloat16" else None,
            measure_every=config.log.every,
            start=start or 0,
        )
        with (
            stop,
            recording(
                config,
                summary,
                folder,
                started,
                lambda: fingerprint(model.state_dict(), optimizer.state_dict()),
            ),
            dashboard(config, folder, start) as board,
            tqdm(total=num_steps, desc=dataset.name, unit="step", disable=None) as bar,
        ):
            saver = _Saver(config, folder, model, optimizer, summary)
            if start is None:
                board.sync()
                saver.save(is_last=False)
            bar.update(summary.steps)
            names = [name for name, _ in model.named_parameters()]
            num_samples, epoch_seconds = 0, 0.0
            for step, seconds in _timed(steps, device):
                summary.steps = step.number
                summary.train_seconds += seconds
                num_samples += step.num_samples
                epoch_seconds += seconds
                if step.grad_norms is not None:
                    board.log(step.number, step_scalars(step, names))
                board.beat()
                if bar.update():
                    bar.set_postfix(shown(step, summary), refresh=False)
                if step.ends_epoch:
                    board.flush()
                    test = evaluate(model, test_batches, loss_fn)
                    summary.note(step, test)
                    rate = num_samples / epoch_seconds
                    board.log(step.number, epoch_scalars(test, rate))
                    say(epoch_line(step, summary, config.epochs, epoch_seconds))
                    num_samples, epoch_seconds = 0, 0.0
                is_due = step.number % config.checkpoint.every == 0
                if is_due or step.ends_epoch or stop.received:
                    board.sync()
                    saver.save(is_last=step.number == num_steps or bool(stop.received))
                if stop.received:
                    raise Stopped(stop.received)
            mistakes = worst_mistakes(
                predict(model, test_inputs), test_labels, NUM_MISTAKES
            )
            board.image("mistakes/test", _picture(dataset, mistakes), summary.steps)
    say(result(summary, folder))
    return summary


def _picture(dataset: data.Dataset, mistakes: list[Mistake]) -> bytes:
    from minitrain import figures  # with matplotlib, which no run needs earlier

    return figures.draw_mistakes(dataset.test.images, mistakes, dataset.classes)


class _Saver:
    """Saves checkpoints of a run, and rides out a disk that is full for a while."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        summary: Summary,
    ) -> None:
        self.config, self.folder, self.summary = config, folder, summary
        self.model, self.optimizer = model, optimizer
        self.num_failures = 0

    def save(self, is_last: bool) -> None:
        """Save the state after `summary.steps` updates, and say so once it is durable.

        Raises StorageError where it fails for the third time in a row, or at the end.
        """
        folder, step = self.folder / "checkpoints", self.summary.steps
        if any(not p.isfinite().all() for p in self.model.parameters()):
            raise NotFiniteError(
                f"the parameters after step {step} are not finite, and were not saved. "
                "Try a smaller --optimizer.lr, or --clip-norm 1"
            )
        state = {
            "settings": to_toml(self.config),
            "summary": asdict(self.summary),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
        }
        try:
            path = checkpoint.save(folder, step, state)
        except OSError as error:
            self.num_failures += 1
            reason = f"checkpoint of step {step} failed: {error}"
            if is_last or self.num_failures == 3:
                raise StorageError(
                    f"{reason}. Earlier checkpoints in {folder} are intact; make room "
                    f"and continue with --run-dir {self.folder} --resume"
                ) from None
            say(f"warning: {reason}; training goes on")
            return
        self.num_failures = 0
        say(f"saved checkpoint step={step} path={path}")
        checkpoint.rotate(folder, self.config.checkpoint.keep, self.summary.best_step)


def _finished(folder: Path) -> Summary | None:
    """The summary of a run that came to its end, though perhaps not to its last one."""
    try:
        summary = Summary(**json.loads((folder / "summary.json").read_text()))
    except (OSError, ValueError):
        return None
    return summary if summary.status == "finished" else None


def _resume(
    config: Config,
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    summary: Summary,
) -> int | None:
    """Restore the newest intact checkpoint; its step, or None where there is none.

    Raises CheckpointError where all are damaged, SettingsError where settings that
    change the result differ and this was not allowed.
    """
    if not config.resume:
        return None
    for stray in folder.rglob(f".*.{'[0-9a-f]' * 16}.part"):
        stray.unlink()  # a file that a kill left unfinished; TensorBoard would read it
    found, faults = checkpoint.newest(folder / "checkpoints")
    if found is None:
        say(f"{folder} holds no checkpoint yet: the run begins anew")
        return None
    for fault in faults:
        say(f"{fault}; using step={found.step}")
    old = from_toml(found.state["settings"])
    free, bound = changes(old, config)
    if bound and not config.allow_changes:
        raise SettingsError(
            "these settings change the result, and cannot change in a resumed run "
            "unless by --allow-changes:\n  " + "\n  ".join(bound)
        )
    for change in free + bound:
        say(f"changed {change}")
    model.load_state_dict(found.state["model"])
    optimizer.load_state_dict(found.state["optimizer"])
    for group in optimizer.param_groups:
        # The schedule sets lr, and after the last step it is that of the last step.
        group.update(config.optimizer.model_dump(exclude={"lr"}))
    torch.set_rng_state(found.state["random"])
    for name, value in found.state["summary"].items():
        setattr(summary, name, value)
    say(f"resumed step={found.step} path={found.path}")
    return found.step


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
        return models.MLP(hidden=settings.hidden)
    return models.FastCNN() if settings.name == "fast-cnn" else models.CNN()


def learning_rate(config: Config, num_steps: int) -> Callable[[int], float]:
    """The learning rate as a function of the number of completed updates."""
    schedule = SCHEDULES[config.schedule.name]

    def lr(step: int) -> float:
        factor = schedule(step, num_steps) * warmup(step, config.schedule.warmup)
        return config.optimizer.lr * factor

    return lr


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


def _timed(steps: Iterable[Step], device: torch.device) -> Iterator[tuple[Step, float]]:
    """Every step with the seconds it took, without those of the caller's own work."""
    start = time.perf_counter()
    for step in steps:
        if step.ends_epoch and device.type != "cpu":
            torch.accelerator.synchronize(device)  # what is queued counts as training
        yield step, time.perf_counter() - start
        start = time.perf_counter()
