"""Train a network: minitrain train [EXPERIMENT] [--key VALUE ...]"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from minitrain.distributed.launch import Launch
from minitrain.system.errors import DivergedError, MinitrainError
from minitrain.system.signals import Stop

if TYPE_CHECKING:
    from minitrain.experiment.settings import Config


def main(arguments: Sequence[str], program: str) -> int:
    """Train as the command line says; return the exit code.

    Args:
        arguments: The command line after the name of the command.
        program: What the command is called in its help.
    """
    started, launch = time.perf_counter(), Launch.of()
    stop = Stop(
        is_silent=launch.rank > 0
    ).install()  # before the imports that take long
    from minitrain.experiment.reading import parse

    try:
        return train(parse(arguments, program), started, stop)
    except MinitrainError as error:
        if _is_told(error, launch):
            return error.exit_code
        raise


def _is_told(error: MinitrainError, launch: Launch) -> bool:
    """Return whether another process of the group tells the same error."""
    if launch.world_size == 1:
        return False
    from minitrain.distributed.group import is_first_to_tell

    return not is_first_to_tell(error, launch)


def train(
    config: "Config", started: float | None = None, stop: Stop | None = None
) -> int:
    """Train as the settings say; return the exit code.

    Args:
        config: The settings.
        started: When the program started, by `time.perf_counter()`; by default now.
        stop: Knows of signals that ask the training to end.

    Raises:
        DivergedError: Loss or gradient was not finite.
        MinitrainError: As `minitrain.experiment.run` does.
    """
    from minitrain.experiment.runner import run  # with torch: now all is checked
    from minitrain.training import NotFiniteError

    try:
        run(config, started=started, stop=stop)
    except NotFiniteError as error:
        raise DivergedError(
            f"{error}.\nThe update was not made: the parameters are those after "
            f"step {error.step - 1}. {' '.join(error.__notes__)}\nA smaller learning "
            "rate, clipping (--clip-norm 1) or a warm-up (--schedule.warmup 500) may "
            "help."
        ) from error
    return 0
