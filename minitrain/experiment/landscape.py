"""The loss of a run around its trained weights, and on the way to them."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minitrain.batches import Batches
from minitrain.experiment.again import read_settings, settings_at
from minitrain.experiment.build import build
from minitrain.experiment.data import is_in_memory, num_samples_of
from minitrain.experiment.machine import find_device
from minitrain.experiment.parts import Run
from minitrain.experiment.trained import load
from minitrain.instruments.landscape import (
    Plane,
    Weights,
    line,
    losses_at,
    nearest_alpha,
    plane,
)
from minitrain.loading import DatasetBatches
from minitrain.randomness import RandomStates
from minitrain.runs import checkpoint
from minitrain.runs.checkpoint import Checkpoint, DamagedError, UnreadableError
from minitrain.samples import move, select
from minitrain.system.terminal import warn

if TYPE_CHECKING:
    from minitrain.pictures.png import Picture

SAMPLES_AT_ONCE = 100
"""As many go through the model together: a CNN takes longer with more or fewer."""

ALPHAS = torch.arange(-10, 51, dtype=torch.float64) / 40
"""Where the loss on the straight line is evaluated: from -0.25 to 1.25."""

Values = tuple[Tensor, Tensor]
"""Points of a line, and the loss at each: (num,) and (num,)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Landscape:
    """The loss of some training samples as a function of the weights."""

    name: str
    """That of the run's folder."""
    num_samples: int
    """The loss is the mean over so many."""
    plane: Plane
    """The loss over two random directions around the trained weights."""
    line: Values | None
    """The loss on the straight line from the initial weights, at 0, to the trained
    ones, at 1; None where the initial ones are not kept."""
    path: Values | None
    """The loss of the initial weights and those of every checkpoint that is kept, each
    at the point of the line that is nearest to it."""

    def plot(self) -> "Picture":
        """Return a figure of it."""
        from minitrain.pictures.landscape import draw_landscape  # with matplotlib

        title = f"{self.name}\nloss $L$ of {self.num_samples} training samples"
        return draw_landscape(*self.plane, self.line, self.path, title=title)


def plot_landscape(run_dir: Path | str, **options: Any) -> "Picture":
    """Draw the loss of a run around its trained weights, and on the way to them.

    Args:
        run_dir: The run directory.
        options: As for `explore`.

    Returns:
        A matplotlib figure, which Jupyter shows inline; `savefig` writes it.

    Raises:
        MinitrainError: As `explore` does.
    """
    return explore(run_dir, **options).plot()


def explore(
    run_dir: Path | str,
    *,
    num_samples: int = 400,
    num_points: int = 17,
    radius: float = 1.0,
    seed: int = 0,
    trust_code: bool = False,
) -> Landscape:
    """Evaluate the loss of a run around its trained weights, and on the way to them.

    The trained weights are those that `load` returns, and the loss is that of the data
    and the settings that the run began with, in evaluation mode. Nothing in the run
    directory changes, and no random state.

    Args:
        run_dir: The run directory.
        num_samples: How many training samples the loss is the mean over, drawn at
            random but always the same ones; all of them where there are fewer.
        num_points, radius, seed: As for `minitrain.instruments.landscape.plane`.
        trust_code: Whether the source that the run keeps may be executed.

    Raises:
        SettingsError: There is no such run.
        ValueError: An option is out of its range, or the model has no filters.
        MinitrainError: As `load` and `build` do.
    """
    folder = Path(run_dir)
    config = read_settings(folder, trust_code=trust_code)
    config = config.model_copy(update={"device": "auto"})  # any will do
    states = RandomStates(find_device("auto"))
    with states.replay(states.keep()):
        model = load(folder, trust_code=trust_code)
        kept = [*_checkpoints(folder)]
        summary = kept[-1].state["summary"]
        run = build(settings_at(0, config, summary["changes"]))
        batches = _sample(run, num_samples)
        if run.data_sha256 != summary["data_sha256"]:
            warn("warning: the data are not those that the run was trained on")
        start = _initial_weights(run, summary["fingerprints"].get("0"))
        model.to(run.device)
        options: dict[str, Any] = {"radius": radius, "num_points": num_points}
        around = plane(model, batches, run.loss_fn, seed=seed, **options)
        on_line = path = None
        if start is not None:
            end = model.state_dict()
            on_line = ALPHAS, line(start, end, ALPHAS, model, batches, run.loss_fn)
            points = [start, *(move(each.state["model"], run.device) for each in kept)]
            nearest = [nearest_alpha(each, start, end) for each in points]
            losses = losses_at(points, model, batches, run.loss_fn)
            path = torch.tensor(nearest, dtype=torch.float64), losses
    return Landscape(
        name=folder.resolve().name,
        num_samples=batches.num_samples,
        plane=around,
        line=on_line,
        path=path,
    )


def _checkpoints(folder: Path) -> Iterator[Checkpoint]:
    """Yield the intact checkpoints of a run by step, the newest last."""
    for path in checkpoint.find_all(folder / "checkpoints"):
        with suppress(DamagedError, UnreadableError):
            yield checkpoint.load(path)


def _sample(run: Run, num: int) -> Batches:
    """Return training samples drawn at random, the same whenever there are as many."""
    samples, total = run.data.train, num_samples_of(run.data.train)
    if num < 1:
        raise ValueError(f"num_samples = {num}: must be at least 1")
    indices = torch.randperm(total, generator=torch.Generator().manual_seed(0))[:num]
    if is_in_memory(samples):
        chosen = select(samples, indices)
    else:
        items = DatasetBatches(samples, 1, run.config.seed)
        chosen = items.choose(indices.tolist())
    inputs, targets = move(chosen, run.device)
    return Batches(inputs, targets, min(SAMPLES_AT_ONCE, len(indices)))


def _initial_weights(run: Run, fingerprint: str | None) -> Weights | None:
    """Return the weights that a run began with; None, and say so, if they are others.

    Args:
        run: The run, made anew from its seed.
        fingerprint: That of its state before the first step, as it was.
    """
    if run.fingerprint() == fingerprint:
        return run.model.state_dict()
    warn(
        "warning: here the seed does not give the weights that the run began with, so "
        "the way from them is not drawn"
    )
    return None
