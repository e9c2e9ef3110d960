"""The commands: one file for each.

Start with `commands`, which lists them and has the door that they share. The commands
are `train`, `descend`, `explain`, `plot` and `landscape`. Each reads its settings, does
its work by the rooms below, and turns what happened into words and an exit code.

This room imports everything, and nothing imports it but `minitrain.__main__` and the
scripts.
"""

from typing import TYPE_CHECKING

from minitrain._lazy import lazily

if TYPE_CHECKING:
    from minitrain.cli.commands import main as main
    from minitrain.cli.commands import run as run

_HOMES = {"main": "commands", "run": "commands"}

if not TYPE_CHECKING:  # whose readers know the names above, and no others
    __all__ = sorted(_HOMES)
    __getattr__, __dir__ = lazily(__name__, _HOMES)
