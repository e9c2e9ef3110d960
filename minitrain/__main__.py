"""The commands: python -m minitrain COMMAND ..."""

import sys

from minitrain.cli import main

if __name__ == "__main__":
    sys.exit(main(program="python -m minitrain"))
