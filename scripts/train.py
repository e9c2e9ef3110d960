"""Train a network: python scripts/train.py [EXPERIMENT.toml] [--key VALUE ...]"""

import sys
import time

STARTED = time.perf_counter()

from minitrain.cli.train import main  # noqa: E402
from minitrain.system.terminal import exit_code  # noqa: E402

if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:], program="train.py", started=STARTED)))
