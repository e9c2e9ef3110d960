"""The commands, called in this process or in one of their own."""

import os
import subprocess
import sys
from pathlib import Path

from minitrain.cli import main

ROOT = Path(__file__).parents[2]


def exit_code_of(*words: object) -> int:
    """Run `minitrain WORDS` in this process; return its exit code."""
    try:
        return main([str(word) for word in words])
    except SystemExit as exit:
        assert isinstance(exit.code, int)
        return exit.code


def in_a_process(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments, on this copy of minitrain."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=120,
    )
