"""Walk down a function: minitrain descend FUNCTION [--key VALUE ...]"""

import math
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, SupportsFloat

import tyro
from pydantic import Field, ValidationInfo, field_validator
from tyro.conf import FlagCreatePairsOff, Positional, arg

from minitrain.experiment.settings import Settings
from minitrain.rule import Rule, equation
from minitrain.runs.folder import check_unused, create_folder
from minitrain.system.errors import SettingsError, StorageError

if TYPE_CHECKING:
    from minitrain.descent import Trajectory
    from minitrain.functions import Example

# The keys of minitrain.functions.EXAMPLES, known here without importing torch.
Name = Literal["paraboloid", "bowl", "rosenbrock", "himmelblau", "beale", "saddle"]

NOT_FINITE = 6  # the exit code of a walk that diverged
NEAR = 0.1  # a walk has arrived when it is this close to a minimum

own = partial(arg, help_behavior_hint="(default: the function's own)")


class Walk(Settings):
    """Walk down a function of x and y: theta <- theta - lr * grad f(theta).

    Prints the walk as a table, draws it over the level sets of the function, and logs
    value, gradient norm and picture to TensorBoard.
    """

    function: Positional[Name]
    """The function to descend."""
    start: Annotated[tuple[float, ...] | None, own(metavar="X Y")] = None
    """Where the walk starts."""
    lr: Annotated[float | None, Field(gt=0), own(metavar="LR", constructor=float)] = (
        None
    )
    """Learning rate, the step size."""
    steps: Annotated[int | None, Field(ge=1), own(metavar="N", constructor=int)] = None
    """Number of updates."""
    momentum: Annotated[float, Field(ge=0)] = 0.0
    """Fraction of the momentum buffer kept at each step."""
    nesterov: bool = False
    """Step along the gradient plus momentum times the buffer."""
    run_dir: Annotated[
        Path | None,
        Field(strict=False),
        arg(constructor=Path, help_behavior_hint="(default: a fresh one under runs/)"),
    ] = None
    """Folder of picture and event file."""
    debug: bool = False
    """Show the traceback of an error."""

    @field_validator("start")
    @classmethod
    def _start_is_a_point(cls, start: tuple[float, ...]) -> tuple[float, ...]:
        if start is not None and len(start) != 2:
            raise ValueError(f"{start} must be two numbers, x and y")
        return start

    @field_validator("nesterov")
    @classmethod
    def _nesterov_is_possible(cls, nesterov: bool, others: ValidationInfo) -> bool:
        if nesterov and others.data.get("momentum") == 0:
            raise ValueError("needs momentum > 0, got momentum = 0.0")
        return nesterov


def main(arguments: Sequence[str], program: str) -> int:
    """Descend as the command line says; return the exit code.

    Args:
        arguments: The command line after the name of the command.
        program: What the command is called in its help.
    """
    return run(
        tyro.cli(Walk, args=arguments, prog=program, config=[FlagCreatePairsOff])
    )


def run(walk: Walk) -> int:
    """Take the walk, keep it in the run directory, and tell of it.

    Returns:
        The exit code: 0, or `NOT_FINITE` where the walk diverged.

    Raises:
        MinitrainError: The settings, the folder or the disk do not allow it.
    """
    check_unused(walk.run_dir)
    from minitrain.functions import EXAMPLES

    example = EXAMPLES[walk.function]
    rule = Rule(walk.lr or example.lr, walk.momentum, nesterov=walk.nesterov)
    trajectory = take(walk, example, rule)
    folder = create_folder(walk.run_dir, f"descend-{walk.function}")
    try:
        keep(folder, example, trajectory, rule)
    except OSError as error:
        raise StorageError(f"cannot write the run directory: {error}") from None

    has_diverged = trajectory.diverged is not None
    print(table(trajectory), flush=True)
    print(
        f"\n{verdict(example, trajectory, rule)}\n",
        file=sys.stderr if has_diverged else sys.stdout,
        flush=True,
    )
    (events,) = folder.glob("events.*")
    print(f"picture  {folder / 'descent.png'}\nevents   {events}", flush=True)
    return NOT_FINITE if has_diverged else 0


def take(walk: Walk, example: "Example", rule: Rule) -> "Trajectory":
    """Walk down the function, from where the settings or else the function say.

    Raises:
        SettingsError: The walk cannot start there.
    """
    from minitrain.descent import descend

    try:
        return descend(
            example.function,
            walk.start or example.start,
            lr=rule.lr,
            steps=walk.steps or example.steps,
            momentum=rule.momentum,
            nesterov=rule.nesterov,
        )
    except ValueError as error:
        raise SettingsError(str(error)) from None


def keep(
    folder: Path, example: "Example", trajectory: "Trajectory", rule: Rule
) -> None:
    """Draw the walk, and write it for TensorBoard.

    Raises:
        OSError: A file cannot be written.
    """
    from minitrain.pictures.descent import draw_descent
    from minitrain.runs.board import Board

    title = f"$f(x, y) = {example.formula}$\n{_options(rule)}"
    if trajectory.diverged is not None:
        title += f", diverged at step {trajectory.diverged}"
    png = draw_descent(
        example.function,
        trajectory,
        title=title,
        minima=example.minima,
        window=example.window,
    )
    (folder / "descent.png").write_bytes(png)
    with Board(folder) as board:
        board.text("run/equation", describe(example, trajectory, rule))
        board.image("descent", png)
        rows = zip(
            trajectory.values.tolist(), trajectory.grad_norms.tolist(), strict=True
        )
        for step, (value, norm) in enumerate(rows):
            board.log(step, {"value": value, "grad_norm/global": norm})


def describe(example: "Example", trajectory: "Trajectory", rule: Rule) -> str:
    """Write the rule of the walk and its first step in numbers, as Markdown."""
    lines = [f"f(x, y) = {example.formula}", ""]
    lines += equation(rule, function="f").splitlines()
    if len(trajectory.points) > 1:
        # At first b is the gradient, which Nesterov adds once more, times momentum.
        direction = trajectory.gradients[0] * (1 + rule.momentum * rule.nesterov)
        before, after = map(_point, trajectory.points[:2])
        lines += ["", f"{after} = {before} - {rule.lr:g} * {_point(direction)}"]
    return "\n".join(f"    {line}" for line in lines)


def table(trajectory: "Trajectory") -> str:
    """Write a row for each step, with aligned columns."""
    rows = [["step", "x", "y", "value", "df/dx", "df/dy", "|grad|"]]
    columns = (
        *trajectory.points.T.tolist(),
        trajectory.values.tolist(),
        *trajectory.gradients.T.tolist(),
        trajectory.grad_norms.tolist(),
    )
    for step, numbers in enumerate(zip(*columns, strict=True)):
        rows.append([str(step), *(f"{number:#.5g}" for number in numbers)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def verdict(example: "Example", trajectory: "Trajectory", rule: Rule) -> str:
    """Say what became of the walk, in one sentence or two."""
    end, last = trajectory.points[-1].tolist(), len(trajectory.points) - 1
    first_value, last_value = trajectory.values[[0, -1]].tolist()
    if not example.minima:
        seen = f"{example.formula} has no minimum, it falls forever"
        if trajectory.diverged is not None:
            return (
                f"Diverged at step {trajectory.diverged}: {seen}. Take fewer --steps."
            )
        return f"After {last} steps the value is {last_value:.5g}: {seen}."
    if trajectory.diverged is not None:
        return (
            f"Diverged at step {trajectory.diverged}: {_options(rule)} is too large "
            "here, the walk climbs instead of descending. Try a smaller --lr."
        )
    nearest = min(example.minima, key=lambda minimum: math.dist(minimum, end))
    distance = math.dist(nearest, end)
    if distance <= NEAR:
        return (
            f"Arrived near the minimum {_point(nearest)} after {last} steps: "
            f"distance {distance:.3g}, value {last_value:.3g}."
        )
    remedy = "more --steps" if last_value < first_value else "a smaller --lr"
    return (
        f"Not arrived after {last} steps: the nearest minimum, {_point(nearest)}, is "
        f"{distance:.3g} away, and the value went from {first_value:.5g} to "
        f"{last_value:.5g}. Try {remedy}."
    )


def _options(rule: Rule) -> str:
    text = f"lr = {rule.lr:g}"
    if rule.momentum:
        text += f", {'Nesterov ' * rule.nesterov}momentum = {rule.momentum:g}"
    return text


def _point(coordinates: Iterable[SupportsFloat]) -> str:
    return "(" + ", ".join(f"{float(number):.5g}" for number in coordinates) + ")"
