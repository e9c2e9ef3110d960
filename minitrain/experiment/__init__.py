"""An experiment from its settings to its summary.

Start with `settings`, which says what can be set. `reading` takes settings from the
command line and from TOML, `build` makes the parts of a run from them, `runner` trains,
and `report` tells. `builtin` has the data sets and models that come with minitrain.

This room is the only one below `explain` that knows settings; it imports all wings.
"""

from typing import TYPE_CHECKING

from minitrain._lazy import lazily

if TYPE_CHECKING:
    from minitrain.experiment.runner import load as load
    from minitrain.experiment.runner import run as run
    from minitrain.experiment.settings import Config as Config

_HOMES = {"Config": "settings", "load": "runner", "run": "runner"}

if not TYPE_CHECKING:  # whose readers know the names above, and no others
    __all__ = sorted(_HOMES)
    __getattr__, __dir__ = lazily(__name__, _HOMES)
