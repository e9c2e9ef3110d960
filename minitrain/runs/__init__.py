"""What a run leaves on disk: its folder, checkpoints, summary and event file.

Start with `checkpoint`, which writes one verified file, and `saver`, which does so
while a run goes on. `board` writes what TensorBoard shows, by `events`; `scalars` says
what of a step that is, `points` reads it again, and `history` hands it out. `folder`
finds a run a place of its own, and `summary` tells how it went.

This room imports the book and `system`, and knows no settings.
"""

from typing import TYPE_CHECKING

from minitrain._lazy import lazily

if TYPE_CHECKING:
    from minitrain.runs.board import Board as Board
    from minitrain.runs.checkpoint import Checkpoint as Checkpoint
    from minitrain.runs.checkpoint import save as save
    from minitrain.runs.history import History as History

_HOMES = {
    "Board": "board",
    "Checkpoint": "checkpoint",
    "History": "history",
    "save": "checkpoint",
}

if not TYPE_CHECKING:  # whose readers know the names above, and no others
    __all__ = sorted(_HOMES)
    __getattr__, __dir__ = lazily(__name__, _HOMES)
