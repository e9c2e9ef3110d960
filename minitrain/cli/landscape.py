"""Draw the loss around trained weights: minitrain landscape RUN [--output PNG]"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from pydantic import Field, field_validator
from tyro.conf import FlagCreatePairsOff, Positional, arg

from minitrain.experiment.settings import Count, PrintablePath, Settings

if TYPE_CHECKING:
    from minitrain.experiment.landscape import Landscape


class Ask(Settings, title=""):
    """Draw the loss of a run around its trained weights, and on the way to them.

    Above: over a plane of two random directions, whose filters have the size of the
    weights' own. Below: on the straight line from the initial to the trained weights.
    Nothing in the folder of the run changes.
    """

    run: Positional[Annotated[PrintablePath, arg(metavar="RUN")]]
    """A run directory, as `train` makes them."""
    output: PrintablePath = Path("landscape.png")
    """The PNG file to write."""
    samples: Count = 400
    """Training samples that the loss is the mean of, always the same."""
    points: Annotated[int, Field(ge=3, le=1001)] = 17
    """Points along either direction, an odd number."""
    radius: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """How far the plane reaches, in units of the weights' own size."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of the two directions."""
    trust_code: bool = False
    """Build the model by the code that the run keeps in its folder `source`."""
    debug: bool = False
    """Show the traceback of an error."""

    @field_validator("points")
    @classmethod
    def _points_are_odd(cls, points: int) -> int:
        if points % 2 == 0:
            raise ValueError(
                f"{points} is even: take an odd number, so that the weights themselves "
                "are in the middle"
            )
        return points


def main(arguments: Sequence[str], program: str) -> int:
    """Draw the landscape that the command line asks for; return the exit code.

    Args:
        arguments: The command line after the name of the command.
        program: What the command is called in its help.
    """
    asked = tyro.cli(Ask, args=arguments, prog=program, config=[FlagCreatePairsOff])
    from minitrain.experiment.landscape import explore  # with torch: all is checked now

    found = explore(
        asked.run,
        num_samples=asked.samples,
        num_points=asked.points,
        radius=asked.radius,
        seed=asked.seed,
        trust_code=asked.trust_code,
    )
    picture = found.plot()

    from minitrain.pictures.png import png
    from minitrain.system.files import replacing

    with replacing(asked.output) as file:
        file.write(png(picture))
    print("\n".join(describe(found)))
    print(f"wrote {asked.output}")
    return 0


def describe(found: "Landscape") -> list[str]:
    """Say in sentences what the loss is at the weights, around and on the way."""
    losses = found.plane.losses
    middle = losses[len(losses) // 2, len(losses) // 2]
    sentences = [
        f"loss of {found.num_samples} training samples: {middle:.4g} at the trained "
        f"weights, from {losses.min():.4g} to {losses.max():.4g} over the plane"
    ]
    if found.line is not None:
        alphas, values = found.line
        between = (alphas >= 0) & (alphas <= 1)
        alphas, values = alphas[between], values[between]
        highest = int(values.argmax())
        barrier = f"at most {values[highest]:.4g}, at {alphas[highest]:.0%} of the way"
        sentences.append(
            f"on the straight line: {values[0]:.4g} at the initial weights, "
            + (barrier if highest else "and no more on the way")
        )
    return sentences
