"""The curves of runs on disk, as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from minitrain.system.errors import SettingsError

if TYPE_CHECKING:
    from minitrain.pictures.png import Picture


def plot(*runs: Path | str) -> "Picture":
    """Draw loss, gradient norm and accuracy of some runs side by side.

    Args:
        runs: Run directories.

    Returns:
        A matplotlib figure, which Jupyter shows inline; `savefig` writes it.

    Raises:
        SettingsError: No run is named, or one has no curves.
    """
    if not runs:
        raise SettingsError("no run is named: give the directories of one or more")
    from minitrain.runs.points import read_curves

    curves = {name: read_curves(run) for name, run in _named(runs).items()}
    for run, found in zip(runs, curves.values(), strict=True):
        if not found:
            raise SettingsError(f"{run} holds no TensorBoard scalars")

    from minitrain.pictures.runs import draw_runs  # with matplotlib: all is read now

    return draw_runs(curves)


def _named(runs: Sequence[Path | str]) -> dict[str, Path]:
    """The runs by the names of their folders, or by their paths where two are equal."""
    paths = [Path(run) for run in runs]
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return dict(zip(names, paths, strict=True))
