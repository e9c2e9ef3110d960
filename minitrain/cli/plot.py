"""Draw runs side by side: minitrain plot RUN [RUN ...] --output PNG"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from pydantic import Field
from tyro.conf import FlagCreatePairsOff, Positional, arg

from minitrain.experiment.settings import PrintablePath, Settings
from minitrain.system.errors import SettingsError

if TYPE_CHECKING:
    from minitrain.pictures.runs import Curve


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
    curves = {name: read_curves(run) for name, run in _named(asked.runs).items()}

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


def read_curves(run: Path) -> dict[str, "Curve"]:
    """The steps and the values of a run's scalars, by tag.

    Raises:
        SettingsError: The folder holds none.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), {"scalars": 0}).Reload()
    tags = events.Tags()["scalars"]
    if not tags:
        raise SettingsError(f"{run} holds no TensorBoard scalars")
    points = {tag: events.Scalars(tag) for tag in tags}
    return {
        tag: ([point.step for point in found], [point.value for point in found])
        for tag, found in points.items()
    }
