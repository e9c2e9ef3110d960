"""Train a network: python scripts/train.py [EXPERIMENT.toml] [--key VALUE ...]"""

import sys
import time

STARTED = time.perf_counter()

from minitrain.errors import DivergedError, exit_code  # noqa: E402
from minitrain.signals import Stop  # noqa: E402


def main() -> int:
    stop = Stop().install()  # before the imports that take long
    from minitrain.config import parse

    config = parse(sys.argv[1:])
    from minitrain.experiment import run  # with torch: only now that all is checked
    from minitrain.training import NotFiniteError

    try:
        run(config, started=STARTED, stop=stop)
    except NotFiniteError as error:
        raise DivergedError(
            f"{error}.\nThe update was not made: the parameters are those after "
            f"step {error.step - 1}.\nA smaller learning rate, clipping "
            "(--clip-norm 1) or a warm-up (--schedule.warmup 500) may help."
        ) from error
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
