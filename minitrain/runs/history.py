"""The history of a run: every curve that it has logged, by tag."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minitrain.system.errors import SettingsError, did_you_mean


class Curve(NamedTuple):
    """The values of one tag, in the order of steps."""

    steps: np.ndarray
    """Completed updates at each value, whole numbers: (num,)."""
    values: np.ndarray
    """The values, as float64; TensorBoard's format keeps them as float32: (num,)."""


class History(Mapping[str, Curve]):
    """Every scalar that a run has logged: a mapping of tags to steps and values.

    >>> import tempfile
    >>> from minitrain.runs.board import Board
    >>> folder = tempfile.mkdtemp()
    >>> with Board(folder) as board:
    ...     board.log(1, {"loss/train": 2.5})
    ...     board.log(2, {"loss/train": 1.5})
    >>> history = History.read(folder)
    >>> history["loss/train"].values
    array([2.5, 1.5])
    >>> steps, values = history["loss/train"]

    Args:
        curves: Steps and values by tag.
        folder: The run directory that they come from.
    """

    def __init__(self, curves: Mapping[str, tuple[Any, Any]], folder: Path) -> None:
        self.folder = folder
        self._curves = {
            tag: Curve(np.array(steps, np.int64), np.array(values, np.float64))
            for tag, (steps, values) in curves.items()
        }

    @classmethod
    def read(cls, run_dir: Path | str) -> "History":
        """Read the history of a run, finished or not, from its event file.

        Raises:
            SettingsError: There are no curves.
        """
        from minitrain.runs.points import read_curves  # with tensorboard: slow

        folder = Path(run_dir)
        curves = read_curves(folder)
        if not curves:
            raise SettingsError(f"{folder} holds no TensorBoard scalars")
        return cls(curves, folder)

    def __getitem__(self, tag: str) -> Curve:
        if tag not in self._curves:
            raise KeyError(f"no tag {tag!r}{did_you_mean(tag, [*self])}")
        return self._curves[tag]

    def __iter__(self) -> Iterator[str]:
        return iter(self._curves)

    def __len__(self) -> int:
        return len(self._curves)

    def __repr__(self) -> str:
        last = max(curve.steps[-1] for curve in self.values())
        return f"<History of {self.folder.name}: {len(self)} tags, {last} steps>"

    def to_pandas(self) -> Any:
        """Return a table, a `pandas.DataFrame`: a row for each step, a column a tag.

        What was not logged at a step is NaN there.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise ImportError(
                "a table needs pandas, which is not installed: pip install pandas"
            ) from None
        series = {x: pandas.Series(y.values, y.steps) for x, y in self.items()}
        return pandas.DataFrame(series).rename_axis("step")
