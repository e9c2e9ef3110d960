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
        if launch.world_size > 1:
            from minitrain.distributed.report import claim_report

            if not claim_report(error, launch):
                return error.exit_code
        raise


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
    from minitrain.instruments.bad_samples import describe_bad_samples
    from minitrain.training import NotFiniteError

    try:
        run(config, started=started, stop=stop)
    except NotFiniteError as error:
        advice = (
            "A smaller learning rate, clipping (--clip-norm 1) or a warm-up "
            "(--schedule.warmup 500) may help."
        )
        if bad := describe_bad_samples(error.batches):
            advice = f"The cause is in the data: {bad}. Remove or repair such samples."
        raise DivergedError(
            f"{error}.\nThe update was not made: the parameters are those after "
            f"step {error.step - 1}. {' '.join(error.__notes__)}\n{advice}"
        ) from error
    return 0
