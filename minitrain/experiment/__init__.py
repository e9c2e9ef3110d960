"""An experiment from its settings to its summary.

Start with `builtin`, an experiment like anybody's. `definition` says what its file
may define, and `source` loads it; `signature` makes settings of its arguments, beside
those of `settings` that every run has, and `reading` takes their values from the
command line and from TOML. `build` makes the `parts` of a run from them, `runner` puts
them in a folder, `course` trains, and `journal` notes what happens; `sharing` is about
processes that share a run. `recorder` gives a loop of anybody's own what `runner` gives
the one of `train`. `plotting` draws the curves of runs on disk, and `landscape` the
loss around the weights of one.

This room is the only one below `explain` that knows settings; it imports all wings.
"""

from typing import TYPE_CHECKING

from minitrain._lazy import lazily

if TYPE_CHECKING:
    from minitrain.experiment.data import Data as Data
    from minitrain.experiment.runner import run as run
    from minitrain.experiment.settings import Config as Config
    from minitrain.experiment.trained import load as load

_HOMES = {"Config": "configuring", "Data": "data", "load": "trained", "run": "runner"}

if not TYPE_CHECKING:  # whose readers know the names above, and no others
    __all__ = sorted(_HOMES)
    __getattr__, __dir__ = lazily(__name__, _HOMES)
