"""One experiment from its settings to its summary: where the parts are put together."""

import json
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from minitrain import data, models
from minitrain.config import Config, ModelSettings, OptimizerSettings, to_toml
from minitrain.errors import DataError, SettingsError
from minitrain.instruments import fingerprint, worst_mistakes
from minitrain.schedules import SCHEDULES, warmup
from minitrain.sgd import SGD
from minitrain.storage import check_unused, create_folder, replacing
from minitrain.tensorboard import Board, step_scalars
from minitrain.training import Step, evaluate, predict, train
from minitrain.vector import ParameterVector

NUM_MISTAKES = 24


@dataclass
class Summary:
    """What became of a run; `summary.json` in its directory."""

    dataset: str
    seed: int
    status: str = "running"
    steps: int = 0
    epochs: int = 0
    test_accuracy: float | None = None
    test_loss: float | None = None
    train_seconds: float = 0.0
    """Of the training steps alone."""
    total_seconds: float = 0.0
    """Since the process started."""
    fingerprint: str = ""
    """SHA-256 over the final parameters and optimizer state."""
    versions: dict[str, str] = field(
        default_factory=lambda: {
            "python": platform.python_version(),
            **{name: version(name) for name in ("minitrain", "torch", "tensorboard")},
        }
    )


def run(config: Config, started: float | None = None) -> Summary:
    """Train and test one model as the settings say.

    The run directory receives `config.toml`, TensorBoard's event file and, at the end,
    however that comes, `summary.json`. `started` is when the process started, by
    `time.perf_counter()`.

    Raises a MinitrainError where settings, data or run directory do not allow it.
    """
    started = time.perf_counter() if started is None else started
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
    loss_fn = nn.functional.cross_entropy
    num_steps = config.epochs * -(-len(batches) // config.accumulate)
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
    )

    config = _resolved(config, dataset.name, device)
    name = f"{config.data.name}-{config.model.name}-seed{config.seed}"
    folder = create_folder(config.run_dir, name)
    summary = Summary(dataset.name, config.seed)
    with (
        _recording(config, summary, folder, model, optimizer, started),
        _board(config, folder) as board,
        tqdm(total=num_steps, desc=dataset.name, unit="step", disable=None) as bar,
    ):
        names = [name for name, _ in model.named_parameters()]
        before_epoch = 0.0
        for step, seconds in _timed(steps, device):
            summary.steps = step.number
            summary.train_seconds += seconds
            if step.grad_norms is not None:
                board.log(step.number, step_scalars(step, names))
            board.beat()
            if bar.update():
                bar.set_postfix(_shown(step, summary), refresh=False)
            if step.ends_epoch:
                board.flush()
                test = evaluate(model, test_batches, loss_fn)
                summary.epochs = step.epoch
                summary.test_loss, summary.test_accuracy = test.loss, test.accuracy
                epoch_seconds = summary.train_seconds - before_epoch
                before_epoch = summary.train_seconds
                board.log(
                    step.number,
                    {
                        "loss/test": test.loss,
                        "accuracy/test": test.accuracy,
                        "throughput/samples_per_second": len(inputs) / epoch_seconds,
                    },
                )
                tqdm.write(_epoch_line(step, summary, config.epochs, epoch_seconds))
        from minitrain import figures  # with matplotlib, which no run needs earlier

        logits = predict(model, test_inputs)
        mistakes = worst_mistakes(logits, test_labels, NUM_MISTAKES)
        picture = figures.draw_mistakes(dataset.test.images, mistakes, dataset.classes)
        board.image("mistakes/test", picture, summary.steps)
    print(_result(summary, folder))
    return summary


def build_model(settings: ModelSettings) -> nn.Module:
    """The model of this name, with new random weights."""
    if settings.name == "softmax":
        return models.SoftmaxRegression()
    if settings.name == "mlp":
        return models.MLP(hidden=settings.hidden)
    return models.CNN()


def learning_rate(config: Config, num_steps: int) -> Callable[[int], float]:
    """The learning rate as a function of the number of completed updates."""
    schedule = SCHEDULES[config.schedule.name]

    def lr(step: int) -> float:
        factor = schedule(step, num_steps) * warmup(step, config.schedule.warmup)
        return config.optimizer.lr * factor

    return lr


def equation(optimizer: OptimizerSettings) -> str:
    """The update rule with the numbers of these settings.

    >>> print(equation(OptimizerSettings(lr=0.1, momentum=0.9, weight_decay=0.01)))
    g <- grad L(theta)
    g <- g + 0.01 theta
    b <- 0.9 b + g                  (b <- g at the first step)
    theta <- theta - lr b           (lr at most 0.1)
    """
    lines, direction = ["g <- grad L(theta)"], "g"
    if optimizer.weight_decay:
        lines.append(f"g <- g + {optimizer.weight_decay:g} theta")
    if optimizer.momentum:
        share = f"{1 - optimizer.dampening:g} g" if optimizer.dampening else "g"
        buffer = f"b <- {optimizer.momentum:g} b + {share}"
        lines.append(f"{buffer:<31} (b <- g at the first step)")
        direction = "b"
    if optimizer.nesterov:
        direction = f"(g + {optimizer.momentum:g} b)"
    update = f"theta <- theta - lr {direction}"
    lines.append(f"{update:<31} (lr at most {optimizer.lr:g})")
    return "\n".join(lines)


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


@contextmanager
def _recording(
    config: Config,
    summary: Summary,
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    started: float,
) -> Iterator[None]:
    """Write the settings, and `summary.json` when the run ends, however it does."""
    try:
        with replacing(folder / "config.toml") as file:
            file.write(to_toml(config).encode())
        yield
        summary.status = "finished"
    except KeyboardInterrupt:
        summary.status = "interrupted"
        raise
    except BaseException as error:
        summary.status = f"failed: {error!r}"
        raise
    finally:
        summary.fingerprint = fingerprint(model.state_dict(), optimizer.state_dict())
        summary.total_seconds = time.perf_counter() - started
        with replacing(folder / "summary.json") as file:
            file.write(json.dumps(asdict(summary), indent=2).encode() + b"\n")


@contextmanager
def _board(config: Config, folder: Path) -> Iterator[Board]:
    """The run's dashboard, with what is known from the start, and its HParams row."""
    with Board(folder) as board:
        board.text("run/data", f"Trained on **{config.data.name}**.")
        board.text("run/settings", f"```\n{to_toml(config)}```")
        board.text("run/equation", f"```\n{equation(config.optimizer)}\n```")
        board.start_hparams(
            folder.name, _hparams(config), ["accuracy/test", "loss/test"]
        )
        succeeded = False
        try:
            yield board
            succeeded = True
        finally:
            board.end_hparams(succeeded)


def _hparams(config: Config) -> dict[str, bool | float | str]:
    """The settings that change the result, flat, as TensorBoard takes them."""
    machine = {"device": True, "threads": True, "data": {"root"}}
    exclude = {"run_dir": True, "debug": True, "log": True, **machine}
    flat: dict[str, bool | float | str] = {}
    for name, value in config.model_dump(exclude=exclude, exclude_none=True).items():
        items = value.items() if isinstance(value, dict) else [("", value)]
        for key, item in items:
            label = f"{name}.{key}".strip(".")
            flat[label] = item if isinstance(item, bool | int | float) else str(item)
    return flat


def _timed(steps: Iterable[Step], device: torch.device) -> Iterator[tuple[Step, float]]:
    """Every step with the seconds it took, without those of the caller's own work."""
    start = time.perf_counter()
    for step in steps:
        if step.ends_epoch and device.type != "cpu":
            torch.accelerator.synchronize(device)  # what is queued counts as training
        yield step, time.perf_counter() - start
        start = time.perf_counter()


def _shown(step: Step, summary: Summary) -> dict[str, str]:
    """What stands behind the progress bar."""
    shown = {"loss": f"{step.loss:.4f}", "grad_norm": f"{step.grad_norm:.3g}"}
    if summary.test_accuracy is not None:
        shown["accuracy"] = f"{summary.test_accuracy:.2%}"
    return shown


def _epoch_line(step: Step, summary: Summary, epochs: int, seconds: float) -> str:
    return (
        f"epoch {step.epoch}/{epochs}  step {step.number}  "
        f"loss/train {step.loss:.4f}  loss/test {summary.test_loss:.4f}  "
        f"accuracy/test {summary.test_accuracy:.2%}  {seconds:.1f} s"
    )


def _result(summary: Summary, folder: Path) -> str:
    return (
        f"{summary.dataset}: test accuracy {summary.test_accuracy:.2%}, test loss "
        f"{summary.test_loss:.4f} after {summary.steps} steps\n"
        f"trained for {summary.train_seconds:.1f} s of {summary.total_seconds:.1f} s; "
        f"fingerprint {summary.fingerprint[:16]}\n"
        f"run directory {folder}; to look at it: tensorboard --logdir {folder.parent}"
    )
