"""Walk down a function: minitrain descend FUNCTION [--key VALUE ...]"""

import itertools
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import tyro
from pydantic import Field, ValidationInfo, field_validator
from tyro.conf import FlagCreatePairsOff, Positional, arg

from minitrain.experiment.settings import PrintablePath, Settings
from minitrain.explain.walks import (
    Problem,
    describe,
    find_problem,
    options,
    table,
    table_of_all,
    varying,
    verdict,
)
from minitrain.rule import Rule
from minitrain.runs.folder import check_unused, create_folder
from minitrain.system.errors import SettingsError, StorageError

if TYPE_CHECKING:
    from minitrain.descent import Trajectory

# The keys of minitrain.functions.EXAMPLES, known here without importing torch.
Name = Literal["paraboloid", "bowl", "rosenbrock", "himmelblau", "beale", "saddle"]

NOT_FINITE = 6  # the exit code of a walk that diverged

MOST_WALKS = 12
"""More in one picture could not be told apart."""

own = partial(arg, help_behavior_hint="(default: the function's own)")


class Walk(Settings):
    """Walk down a function of x, y, ...: theta <- theta - lr * grad f(theta).

    Prints the walk as a table, draws it over the level sets of the function, and logs
    value, gradient norm and picture to TensorBoard. Several values of --lr or of
    --momentum make several walks, one for every combination, side by side.
    """

    function: Positional[Annotated[str, arg(metavar="FUNCTION")]]
    """paraboloid, bowl, rosenbrock, himmelblau, beale or saddle; or an expression of
    variables, such as "x**2 + 3*y**2" or "sin(x) * exp(-y**2)"."""
    start: Annotated[tuple[float, ...] | None, own(metavar="X Y")] = None
    """Where the walk starts: a number for each variable, in alphabetical order."""
    lr: Annotated[tuple[str, ...], own(metavar="LR [LR ...]")] = ()
    """Learning rate, the step size."""
    steps: Annotated[int | None, Field(ge=1), own(metavar="N", constructor=int)] = None
    """Number of updates."""
    momentum: Annotated[tuple[str, ...], arg(metavar="M [M ...]")] = ("0",)
    """Fraction of the momentum buffer kept at each step."""
    nesterov: bool = False
    """Step along the gradient plus momentum times the buffer."""
    output: Annotated[
        PrintablePath | None,
        arg(constructor=Path, metavar="FILE", help_behavior_hint=""),
    ] = None
    """Write the picture (.png) or an animation of the walk (.gif) here as well."""
    run_dir: Annotated[
        Path | None,
        Field(strict=False),
        arg(constructor=Path, help_behavior_hint="(default: a fresh one under walks/)"),
    ] = None
    """Folder of picture and event file."""
    debug: bool = False
    """Show the traceback of an error."""

    @field_validator("output")
    @classmethod
    def _output_is_a_picture(cls, output: Path | None) -> Path | None:
        if output is not None and output.suffix.lower() not in (".png", ".gif"):
            raise ValueError(f"{output} must end with .png, or .gif for an animation")
        return output


class Options(Settings):
    """How one walk steps: the checks of each combination."""

    lr: Annotated[float, Field(gt=0)]
    momentum: Annotated[float, Field(ge=0)]
    nesterov: bool

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
    """Take the walks, keep them in the run directory, and tell of them.

    Returns:
        The exit code: 0, or `NOT_FINITE` where a walk diverged.

    Raises:
        MinitrainError: The settings, the folder or the disk do not allow it.
    """
    check_unused(walk.run_dir)
    problem = find_problem(walk.function)
    start = problem.start_of(walk.start)
    rules = combinations(walk, problem)
    walks = {
        label: take(problem, rule, start, walk.steps) for label, rule in rules.items()
    }
    stem = walk.function if walk.function in get_args(Name) else "expression"
    folder = create_folder(walk.run_dir, f"descend-{stem}", root="walks")
    try:
        keep_all(folder, walk.output, problem, walks, rules)
    except OSError as error:
        raise StorageError(f"cannot write the walk: {error}") from None

    tell(problem, walks, rules)
    print(f"picture  {folder / 'descent.png'}")
    for events in sorted(folder.rglob("events.*")):
        print(f"events   {events}")
    if walk.output:
        print(f"output   {walk.output}", flush=True)
    diverged = any(each.diverged is not None for each in walks.values())
    return NOT_FINITE if diverged else 0


def combinations(walk: Walk, problem: Problem) -> dict[str, Rule]:
    """Return the rule of every walk by its label, which tells what varies.

    Raises:
        SettingsError: An option is out of its range, or there are too many walks.
    """
    asked = itertools.product(walk.lr or (problem.lr,), walk.momentum)
    checked = [
        Options(lr=_read(lr), momentum=_read(momentum), nesterov=walk.nesterov)
        for lr, momentum in asked
    ]
    rules = [Rule(each.lr, each.momentum, nesterov=each.nesterov) for each in checked]
    if not 1 <= len(rules) <= MOST_WALKS:
        raise SettingsError(
            f"lr and momentum make {len(rules)} walks: there must be between 1 and "
            f"{MOST_WALKS}. Give fewer values"
        )
    keys = varying(rules) or ("lr", "momentum")
    return {options(rule, keys): rule for rule in rules}


def _read(number: str | float) -> Any:
    """Return a number, or the text itself: the settings have the words for it."""
    try:
        return float(number)
    except ValueError:
        return number


def take(
    problem: Problem, rule: Rule, start: Sequence[float], steps: int | None
) -> "Trajectory":
    """Walk down the function.

    Raises:
        SettingsError: The walk cannot start there.
    """
    from minitrain.descent import descend

    try:
        return descend(
            problem.function,
            start,
            lr=rule.lr,
            steps=steps or problem.steps,
            momentum=rule.momentum,
            nesterov=rule.nesterov,
        )
    except ValueError as error:
        raise SettingsError(str(error)) from None


def tell(
    problem: Problem, walks: Mapping[str, "Trajectory"], rules: Mapping[str, Rule]
) -> None:
    """Print the table, and what became of each walk; on standard error if diverged."""
    single, *others = walks.values()
    print(table_of_all(walks) if others else table(problem, single), flush=True)
    for stream, wants_diverged in ((sys.stdout, False), (sys.stderr, True)):
        sentences = [
            f"{label}: " * bool(others) + verdict(problem, each, rules[label])
            for label, each in walks.items()
            if (each.diverged is not None) == wants_diverged
        ]
        if sentences:
            print("", *sentences, "", sep="\n", file=stream, flush=True)


def keep_all(
    folder: Path,
    output: Path | None,
    problem: Problem,
    walks: Mapping[str, "Trajectory"],
    rules: Mapping[str, Rule],
) -> None:
    """Draw the walks, and write each for TensorBoard, of several in its own folder.

    Raises:
        OSError: A file cannot be written.
    """
    from minitrain.pictures.descent import draw_descent
    from minitrain.pictures.png import png
    from minitrain.system.files import replacing

    (label, trajectory), *others = walks.items()
    shown = walks if others else trajectory
    title = heading(problem, walks, rules)
    look = {"title": title, "minima": problem.minima, "window": problem.window}
    picture = png(draw_descent(shown, **look))
    (folder / "descent.png").write_bytes(picture)
    for label, trajectory in walks.items():
        place = folder / label.replace(" ", "") if others else folder
        keep(place, problem, trajectory, rules[label], picture)
    if output:
        with replacing(output) as file:
            is_moving = output.suffix.lower() == ".gif"
            file.write(animation(shown, look) if is_moving else picture)


def heading(
    problem: Problem, walks: Mapping[str, "Trajectory"], rules: Mapping[str, Rule]
) -> str:
    """Write the function, and below it the options that all walks share."""
    rule = next(iter(rules.values()))
    shared = {"lr", "momentum"}.difference(varying(rules.values()))
    if not rule.momentum:
        shared.discard("momentum")
    below = options(rule, shared)
    if len(walks) == 1:
        (walk,) = walks.values()
        below += f", diverged at step {walk.diverged}" if walk.diverged else ""
    return "\n".join(filter(None, [problem.heading(), below]))


def keep(
    folder: Path, problem: Problem, trajectory: "Trajectory", rule: Rule, picture: bytes
) -> None:
    """Write a walk for TensorBoard.

    Raises:
        OSError: A file cannot be written.
    """
    from minitrain.runs.board import Board

    with Board(folder) as board:
        board.text("run/equation", describe(problem, trajectory, rule))
        board.image("descent", picture)
        rows = zip(
            trajectory.values.tolist(), trajectory.grad_norms.tolist(), strict=True
        )
        for step, (value, norm) in enumerate(rows):
            board.log(step, {"value": value, "grad_norm/global": norm})


def animation(walks: Any, look: Mapping[str, Any]) -> bytes:
    """Draw the walks as they grow."""
    from minitrain.pictures.animation import animate_descent

    return animate_descent(walks, **look)
