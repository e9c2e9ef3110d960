"""Draw runs side by side: python scripts/plot.py runs/A runs/B --output curves.png"""

import sys

from minitrain.cli import run

if __name__ == "__main__":
    sys.exit(run("plot", sys.argv[1:], program="plot.py"))
