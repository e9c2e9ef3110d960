"""Walks down a function in words and numbers: what is walked on, and how it went."""

import math
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, SupportsFloat

from minitrain.rule import Rule, equation
from minitrain.system.errors import SettingsError, did_you_mean

if TYPE_CHECKING:
    from minitrain.descent import Trajectory
    from minitrain.variables import PointFunction

NEAR = 0.1
"""A walk has arrived when it is this close to a minimum."""

FLAT = 1e-3
"""Where no minimum is known: when the gradient norm is this part of the first."""

MAX_COORDINATES = 3
"""Coordinates in a table; with more it shows value and gradient norm alone."""

COUNTS = ("no numbers", "one number", "two numbers", "three numbers", "four numbers")


@dataclass(frozen=True)
class Problem:
    """A function to walk down, how that is done by default, and what is known of it."""

    function: "PointFunction"
    formula: str
    variables: tuple[str, ...]
    start: tuple[float, ...] | None = None
    lr: float = 0.1
    steps: int = 30
    minima: tuple[tuple[float, float], ...] = ()
    window: tuple[float, float, float, float] | None = None
    falls_forever: bool = False

    def __str__(self) -> str:
        return f"f({', '.join(self.variables)}) = {self.formula}"

    def heading(self) -> str:
        """Write the function as the title of a picture, in lines that fit."""
        is_mathematics = "^" in self.formula  # and otherwise it is Python
        lines = textwrap.wrap(str(self), 52)
        return "\n".join(f"${line}$" if is_mathematics else line for line in lines)

    def start_of(self, start: Sequence[float] | None) -> tuple[float, ...]:
        """Return where a walk starts: there, or by default where the function says.

        Raises:
            SettingsError: It is not a point of the function, or neither says where.
        """
        n, (*others, last) = len(self.variables), self.variables
        names = " and ".join(filter(None, [", ".join(others), last]))
        count = COUNTS[n] if n < len(COUNTS) else f"{n} numbers"
        if start is None and self.start is None:
            example = " ".join(str(k) for k in range(1, n + 1))
            raise SettingsError(
                f"start: must be given for an expression: {count}, {names}, such as "
                f"--start {example}"
            )
        if start is not None and len(start) != n:
            raise SettingsError(f"start: {start} must be {count}, {names}")
        return tuple(start or self.start or ())


def find_problem(text: str) -> Problem:
    """Return the function of this name, or the one that an expression describes.

    Raises:
        SettingsError: The text is neither.
    """
    from minitrain.expressions import parse
    from minitrain.functions import EXAMPLES

    if known := EXAMPLES.get(text):
        return Problem(
            known.function,
            known.formula,
            variables=("x", "y"),
            start=known.start,
            lr=known.lr,
            steps=known.steps,
            minima=known.minima,
            window=known.window,
            falls_forever=math.isinf(known.minimum),
        )
    try:
        expression = parse(text)
    except ValueError as error:
        rule = str(error)
        if text.isidentifier():
            rule = (
                f"must be one of {', '.join(EXAMPLES)}, or an expression of variables, "
                f'such as "x**2 + 3*y**2"{did_you_mean(text, [*EXAMPLES])}'
            )
        raise SettingsError(f"function = {text!r}: {rule}") from None
    return Problem(expression, expression.text, expression.variables)


def describe(problem: Problem, trajectory: "Trajectory", rule: Rule) -> str:
    """Write the rule of the walk and its first step in numbers, as Markdown."""
    lines = [str(problem), "", *equation(rule, function="f").splitlines()]
    if len(trajectory.points) > 1:
        # At first b is the gradient, which Nesterov adds once more, times momentum.
        direction = trajectory.gradients[0] * (1 + rule.momentum * rule.nesterov)
        before, after = map(_point, trajectory.points[:2])
        lines += ["", f"{after} = {before} - {rule.lr:g} * {_point(direction)}"]
    return "\n".join(f"    {line}" for line in lines)


def table(problem: Problem, trajectory: "Trajectory") -> str:
    """Write a row for each step, with aligned columns."""
    names, points, grads = problem.variables, trajectory.points, trajectory.gradients
    if len(names) > MAX_COORDINATES:
        names, points, grads = (), points[:, :0], grads[:, :0]
    slopes = (f"df/d{name}" for name in names)
    columns = (
        *points.T.tolist(),
        trajectory.values.tolist(),
        *grads.T.tolist(),
        trajectory.grad_norms.tolist(),
    )
    rows = [["step", *names, "value", *slopes, "|grad|"]]
    for step, numbers in enumerate(zip(*columns, strict=True)):
        rows.append([str(step), *map(_number, numbers)])
    return _aligned(rows)


def table_of_all(walks: Mapping[str, "Trajectory"]) -> str:
    """Write value and gradient norm of walks side by side, a row for each step."""
    rows = [["", *walks], ["step", *(_pair("value", "|grad|") for _ in walks)]]
    for step in range(max(len(walk.values) for walk in walks.values())):
        row = [str(step)]
        for walk in walks.values():
            is_there = step < len(walk.values)
            pair = (walk.values, walk.grad_norms) if is_there else ()
            row.append(_pair(*(_number(column[step].item()) for column in pair)))
        rows.append(row)
    return _aligned(rows)


def verdict(problem: Problem, trajectory: "Trajectory", rule: Rule) -> str:
    """Say what became of the walk, in one sentence or two."""
    end, last = trajectory.points[-1].tolist(), len(trajectory.points) - 1
    first_value, last_value = trajectory.values[[0, -1]].tolist()
    if problem.falls_forever:
        seen = f"{problem.formula} has no minimum, it falls forever"
        if trajectory.diverged is not None:
            return (
                f"Diverged at step {trajectory.diverged}: {seen}. Take fewer --steps."
            )
        return f"After {last} steps the value is {last_value:.5g}: {seen}."
    if trajectory.diverged is not None:
        return (
            f"Diverged at step {trajectory.diverged}: {options(rule)} is too large "
            "here, the walk climbs instead of descending. Try a smaller --lr."
        )
    remedy = "more --steps" if last_value < first_value else "a smaller --lr"
    went = f"the value went from {first_value:.5g} to {last_value:.5g}"
    if not problem.minima:
        return _verdict_of_the_gradient(trajectory, f"{went}. Try {remedy}.")
    nearest = min(problem.minima, key=lambda minimum: math.dist(minimum, end))
    distance = math.dist(nearest, end)
    if distance <= NEAR:
        return (
            f"Arrived near the minimum {_point(nearest)} after {last} steps: "
            f"distance {distance:.3g}, value {last_value:.3g}."
        )
    return (
        f"Not arrived after {last} steps: the nearest minimum, {_point(nearest)}, is "
        f"{distance:.3g} away, and {went}. Try {remedy}."
    )


def _verdict_of_the_gradient(trajectory: "Trajectory", otherwise: str) -> str:
    """Judge by the gradient norm, where nobody knows the minima."""
    last, end = len(trajectory.points) - 1, _point(trajectory.points[-1])
    first_norm, last_norm = trajectory.grad_norms[[0, -1]].tolist()
    if last_norm <= FLAT * first_norm:
        return (
            f"Arrived at {end} after {last} steps, where f is nearly flat: value "
            f"{trajectory.values[-1].item():.5g}, |grad| {last_norm:.3g}."
        )
    return (
        f"Not arrived after {last} steps: at {end} |grad| is still {last_norm:.3g}, "
        f"and {otherwise}"
    )


def options(rule: Rule, keys: Collection[str] = ("lr", "momentum")) -> str:
    """Write options of a walk; momentum is left out where there is none to speak of.

    >>> options(Rule(0.1)), options(Rule(0.1, 0.9)), options(Rule(0.1), ["momentum"])
    ('lr = 0.1', 'lr = 0.1, momentum = 0.9', 'momentum = 0')
    """
    parts = [f"lr = {rule.lr:g}"] if "lr" in keys else []
    if "momentum" in keys and (rule.momentum or not parts):
        parts.append(f"{'Nesterov ' * rule.nesterov}momentum = {rule.momentum:g}")
    return ", ".join(parts)


def varying(rules: Iterable[Rule]) -> list[str]:
    """Return which options differ among walks, as `options` takes them."""
    asked = list(rules)
    keys = ("lr", "momentum")
    return [key for key in keys if len({getattr(rule, key) for rule in asked}) > 1]


def _number(number: float) -> str:
    return f"{number:#.5g}"


def _pair(*cells: str) -> str:
    return "  ".join(f"{cell:>10}" for cell in cells)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def _point(coordinates: Iterable[SupportsFloat]) -> str:
    return "(" + ", ".join(f"{float(number):.5g}" for number in coordinates) + ")"
