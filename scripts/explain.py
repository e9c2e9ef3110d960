"""Work out one update: python scripts/explain.py RUN --step K --parameter NAME ..."""

import sys

from minitrain.cli import run

if __name__ == "__main__":
    sys.exit(run("explain", sys.argv[1:], program="explain.py"))
