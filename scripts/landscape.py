"""Draw the loss around the weights of a run: python scripts/landscape.py runs/NAME"""

import sys

from minitrain.cli import run

if __name__ == "__main__":
    sys.exit(run("landscape", sys.argv[1:], program="landscape.py"))
