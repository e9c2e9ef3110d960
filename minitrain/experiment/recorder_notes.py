"""What is noted of a recorded loop: on board and terminal, and in the summary."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, SupportsFloat

from minitrain import tags
from minitrain.experiment.dashboard import as_markdown
from minitrain.experiment.drawing import PICTURES
from minitrain.experiment.recorder_network import Networks
from minitrain.experiment.report import tell, tell_withheld
from minitrain.runs.board import Board
from minitrain.runs.charts import at_a_glance, in_depth, without
from minitrain.runs.images import as_png
from minitrain.runs.summary import Summary


class Notes:
    """Takes in what is to be shown of a step, and writes it when the step is over.

    A step that was not finished leaves nothing on the board that its repetition, after
    a restart, would write again.

    Args:
        networks: The networks of the loop.
        summary: The summary of the run.
    """

    def __init__(self, networks: Networks, summary: Summary) -> None:
        self._networks, self.summary = networks, summary
        self._values: dict[str, float] = {}
        self._shown: dict[str, str | bytes] = {}
        self._board: Board | None = None

    def log(self, values: Mapping[str, SupportsFloat]) -> None:
        """Take in numbers, by their tags.

        Raises:
            TypeError: A value is not a number.
        """
        for tag, value in values.items():
            try:
                self._values[tag] = float(value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise TypeError(f"{tag} is not a number: {error}") from None

    def show(self, name: str, picture: Any) -> None:
        """Take in a picture as it is now, or a text."""
        tag = name if "/" in name else f"{PICTURES}/{name}"
        self._shown[tag] = picture if isinstance(picture, str) else as_png(picture)

    @contextmanager
    def board(
        self, folder: Path, start: int | None, settings: Mapping[str, Any]
    ) -> Iterator[None]:
        """Keep the board open, with what is known at the start and at the end.

        Args:
            folder: The run directory.
            start: The step after which the run is continued; None where it begins.
            settings: Shown at the start.
        """
        owner = f".{self.summary.run_id}"
        # An event file begins after the first checkpoint: see `dashboard`.
        after = start or -1
        with Board(folder, after, owner, keeps_pictures=True) as board:
            if not start:
                _begin(board, folder.name, settings)
            board.flush()
            self._board, succeeded = board, False
            try:
                yield
                succeeded = True
            finally:
                board.text(tags.FINDINGS, as_markdown(self.summary))
                board.end_hparams(succeeded)
                self._board = None

    def write(self, number: int) -> None:
        """Write what was taken in, at step `number`, and look for findings in it."""
        if self._board is None:  # of a finished run, to which nothing is added
            return
        self._board.beat()
        if not (self._values or self._shown):
            return
        values, self._values = self._values, {}
        shown, self._shown = self._shown, {}
        if values:
            self._board.log(number, values)
            for network in self._networks:
                tell(self.summary, network.note(number, values))
                tell_withheld(self.summary, network.tagged(network.panel.withheld))
        for tag, picture in shown.items():
            if isinstance(picture, str):
                self._board.text(tag, picture, number)
            else:
                self._board.image(tag, picture, number)

    def sync(self) -> None:
        """Wait until all is on disk."""
        if self._board is not None:
            self._board.sync()


def _begin(board: Board, name: str, settings: Mapping[str, Any]) -> None:
    """Show what is known at the start."""
    absent = (tags.LARGEST_EIGENVALUE, tags.THROUGHPUT, tags.WAITING)
    charts = without([at_a_glance(), in_depth()], absent)
    board.layout(charts, prefix="(.*/)?")  # the name of a network
    rows = [f"| {key} | {value} |" for key, value in settings.items()]
    board.text(
        tags.SETTINGS, "\n".join(["| setting | value |", "| --- | --- |", *rows])
    )
    plain = {
        k: x if isinstance(x, int | float) else str(x) for k, x in settings.items()
    }
    board.start_hparams(name, plain, [tags.TRAIN_LOSS])
