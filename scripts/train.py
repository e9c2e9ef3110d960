"""Train a network: python scripts/train.py [EXPERIMENT] [--key VALUE ...]"""

import sys

from minitrain.cli import run

if __name__ == "__main__":
    sys.exit(run("train", sys.argv[1:], program="train.py"))
