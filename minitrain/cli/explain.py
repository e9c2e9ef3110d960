"""Work out one update: minitrain explain RUN|FUNCTION --step K ..."""

from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field
from tyro.conf import Positional, arg

from minitrain.experiment.settings import Settings
from minitrain.explain import arithmetic, worked
from minitrain.rule import Rule
from minitrain.system.errors import SettingsError

DISAGREES = 1  # the exit code where a line, or the state after it, is not the run's

of_run = partial(arg, help_behavior_hint="(of a run)")
of_function = partial(arg, help_behavior_hint="(of a function)")


class Explain(Settings):
    """Work out the update of one weight at one step, with its actual numbers.

    The run is replayed to that step, and nothing in its folder changes. Every line is
    computed again in exact fractions; the exit code is 1 where one disagrees.
    """

    source: Positional[Annotated[str, arg(metavar="RUN|FUNCTION")]]
    """A run directory, or a function: paraboloid, bowl, rosenbrock, himmelblau, beale
    or saddle."""
    step: Annotated[int, Field(ge=1), arg(metavar="K")]
    """The step to explain, from 1."""
    parameter: Annotated[str | None, of_run(metavar="NAME", constructor=str)] = None
    """The parameter that the weight belongs to."""
    index: Annotated[tuple[int, ...], of_run(metavar="I J ...")] = ()
    """The place of the weight in its parameter, counted from 0."""
    start: Annotated[tuple[float, ...] | None, of_function(metavar="X Y")] = None
    """Where the walk starts; by default where `descend` starts it."""
    lr: Annotated[
        float | None, Field(gt=0), of_function(metavar="LR", constructor=float)
    ] = None
    """Learning rate; by default that of `descend`."""
    momentum: Annotated[float, Field(ge=0), of_function(metavar="M")] = 0.0
    """Fraction of the momentum buffer kept at each step."""
    trust_code: bool = False
    """Replay by the code that the run keeps in its folder `source`."""
    debug: bool = False
    """Show the traceback of an error."""


def main(arguments: Sequence[str], program: str) -> int:
    """Explain the step that the command line asks for; return the exit code.

    Args:
        arguments: The command line after the name of the command.
        program: What the command is called in its help.
    """
    return run(tyro.cli(Explain, args=arguments, prog=program))


def run(asked: Explain) -> int:
    """Print the example that was asked for.

    Returns:
        The exit code: 0, or `DISAGREES`.

    Raises:
        MinitrainError: There is no such run, function, step or weight, or the run
            cannot be replayed.
    """
    from minitrain.functions import EXAMPLES

    is_function = asked.source in EXAMPLES
    others = ("parameter", "index") if is_function else ("start", "lr", "momentum")
    for key in others:
        if getattr(asked, key) != Explain.model_fields[key].default:
            kind = "run" if is_function else "function"
            raise SettingsError(f"--{key} is for a {kind}, and {asked.source} is none")
    if is_function:
        return explain_walk(asked)
    folder = Path(asked.source)
    if not folder.is_dir():
        raise SettingsError(
            f"there is no run {folder}, and no function of that name: give a run "
            f"directory, or one of {', '.join(EXAMPLES)}"
        )
    return explain_run(asked, folder)


def explain_run(asked: Explain, folder: Path) -> int:
    """Replay a run to the step, work it out for one weight; return the exit code."""
    from minitrain.explain.replay import replay

    seen = replay(
        folder,
        asked.step,
        asked.parameter,
        asked.index,
        trust_code=asked.trust_code,
    )
    where = ", ".join(map(str, asked.index))
    print(
        f"Step {asked.step} of {seen.num_steps} in {folder}, for one weight:\n"
        f"theta = {asked.parameter}[{where}]"
    )
    since = "seed" if seen.start is None else f"checkpoint of step {seen.start}"
    print(f"Replayed from the {since}.")
    if seen.changed:
        print(f"Settings changed since then: {'; '.join(seen.changed)}.")
    print()
    agrees = show(seen.rule, seen.held, seen.form, "theta")
    if seen.equal is not None:
        print(
            f"\nAll parameters and momentum buffers after step {asked.step} "
            + ("equal those of" if seen.equal else "DIFFER from")
            + "\nthe run's checkpoint"
            + (", bit for bit." if seen.equal else ": this replay is not the run.")
        )
    return conclude(agrees and seen.equal is not False)


def explain_walk(asked: Explain) -> int:
    """Work out a step of a walk, for each coordinate; return the exit code."""
    from minitrain.explain.look import walk
    from minitrain.functions import EXAMPLES

    example, k = EXAMPLES[asked.source], asked.step
    start = example.start if asked.start is None else asked.start
    rule = Rule(asked.lr or example.lr, asked.momentum)
    if len(start) != 2:
        raise SettingsError(f"start = {start}: must be two numbers, x and y")
    around = walk(example, rule, start, k)
    agrees = True
    print(
        f"Step {k} down f(x, y) = {example.formula} from ({start[0]:g}, {start[1]:g})"
    )
    for name, first, held in zip("xy", start, around, strict=True):
        print(f"\nThe coordinate {name}\n")
        agrees &= show(rule, held, arithmetic.FLOAT64, name)
        if asked.source == "paraboloid" and rule.momentum == 0:
            agrees &= show_closed_form(first, rule.lr, k, held.new_theta, name)
    return conclude(agrees)


def show(rule: Rule, held: worked.Held, form: arithmetic.Format, name: str) -> bool:
    """Print the example, and return whether all of its lines agree."""
    print("\n".join(worked.write_example(rule, held, form, name)))
    return all(line.agrees for line in worked.work_out(rule, held, form, name))


def conclude(agrees: bool) -> int:
    """Say whether all was as it should be, and return the exit code."""
    if not agrees:
        print("\nThis DISAGREES with the run by more than rounding: see above.")
        return DISAGREES
    print(
        "\nEvery line was computed again in exact fractions, and rounded: the run "
        "holds that\nnumber, or is as many ulp off as shown, by roundings in between "
        "(1 ulp: one in the\nlast binary place of the largest number in the line)."
    )
    return 0


def show_closed_form(start: float, lr: float, k: int, seen: float, name: str) -> bool:
    """Compare a walk down the paraboloid with the power that it is, and print both.

    Each of k steps rounds twice, a product and a difference that are no more than twice
    the largest number of the walk: together they cannot exceed 2 k ulp of that.

    Returns:
        Whether they agree.
    """
    exact = worked.closed_form(start, lr, k)
    base = f"{1 - 2 * lr:g}" if lr <= 0.5 else f"({1 - 2 * lr:g})"
    error = abs(Fraction(seen) - exact)
    largest = 2 * max(abs(Fraction(start)), abs(exact))
    agrees = error <= 2 * k * arithmetic.FLOAT64.ulp(largest)
    print(
        f"\nOn x^2 + y^2 the gradient is 2 {name}, and a step a product: {name} <- "
        f"(1 - 2 lr) * {name}\nAfter {k} from {start:g}: {base}^{k} * "
        f"{start:g} = {float(exact):.12g}, and the walk is there but for "
        f"{float(error):.1g}"
        + ("." if agrees else ": DISAGREES, that is more than rounding.")
    )
    return agrees
