"""The curves of runs, as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from minitrain.system.errors import SettingsError

if TYPE_CHECKING:
    from minitrain.pictures.png import Picture
    from minitrain.runs.history import History


def plot(*runs: "Path | str | History") -> "Picture":
    """Draw loss, gradient norm and accuracy of some runs side by side.

    Args:
        runs: Run directories, or the histories of runs.

    Returns:
        A matplotlib figure, which Jupyter shows inline; `savefig` writes it.

    Raises:
        SettingsError: No run is named, or one has no curves.
    """
    if not runs:
        raise SettingsError("no run is named: give the directories of one or more")
    from minitrain.runs.history import History

    read = [run if isinstance(run, History) else History.read(run) for run in runs]
    curves = dict(zip(_names([each.folder for each in read]), read, strict=True))

    from minitrain.pictures.runs import draw_runs  # with matplotlib: all is read now

    return draw_runs(curves)


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the names of folders, or their paths where two have one name."""
    names = [folder.resolve().name for folder in folders]
    return [*map(str, folders)] if len(set(names)) < len(names) else names
