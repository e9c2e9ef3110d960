"""Draw runs side by side: minitrain plot RUN [RUN ...] --output PNG"""

from collections.abc import Sequence
from typing import Annotated

import tyro
from pydantic import Field
from tyro.conf import FlagCreatePairsOff, Positional, arg

from minitrain.experiment.plotting import plot
from minitrain.experiment.settings import PrintablePath, Settings


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
    picture = plot(*asked.runs)

    from minitrain.pictures.png import png
    from minitrain.system.files import replacing

    with replacing(asked.output) as file:
        file.write(png(picture))
    print(f"wrote {asked.output}")
    return 0
