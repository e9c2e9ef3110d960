"""Walk down a function: python scripts/descend.py FUNCTION [--key VALUE ...]"""

import sys

from minitrain.cli import run

if __name__ == "__main__":
    sys.exit(run("descend", sys.argv[1:], program="descend.py"))
