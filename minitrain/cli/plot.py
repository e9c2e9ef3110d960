"""Draw runs side by side: minitrain plot RUN [RUN ...] --output PNG"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field
from tyro.conf import FlagCreatePairsOff, Positional, arg

from minitrain.experiment.settings import PrintablePath, Settings
from minitrain.system.errors import SettingsError


class Plot(Settings):
    """Draw loss, gradient norm and accuracy of some runs in one picture."""

    runs: Positional[
        Annotated[
            tuple[PrintablePath, ...],
            Field(strict=False),
            arg(metavar="RUN [RUN ...]"),
        ]
    ]
    """Run directories, as `train` makes them."""
    output: PrintablePath
    """The PNG file to write."""
    debug: bool = False
    """Show the traceback of an error."""


def main(arguments: Sequence[str], program: str) -> int:
    """Plot the runs that the command line names; return the exit code.

    Args:
        arguments: The command line after the name of the command.
        program: What the command is called in its help.
    """
    asked = tyro.cli(Plot, args=arguments, prog=program, config=[FlagCreatePairsOff])
    if not asked.runs:
        raise SettingsError("no run is named: give the directories of one or more")
    from minitrain.runs.points import read_curves

    curves = {name: read_curves(run) for name, run in _named(asked.runs).items()}
    for run, found in zip(asked.runs, curves.values(), strict=True):
        if not found:
            raise SettingsError(f"{run} holds no TensorBoard scalars")

    from minitrain.pictures.runs import draw_runs  # with matplotlib: all is read now
    from minitrain.system.files import replacing

    with replacing(asked.output) as file:
        file.write(draw_runs(curves))
    print(f"wrote {asked.output}")
    return 0


def _named(runs: Sequence[Path]) -> dict[str, Path]:
    """The runs by the names of their folders, or by their paths where two are equal."""
    names = [run.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    return dict(zip(names, runs, strict=True))
