"""A TensorBoard run as one event file, written so that watching costs next to nothing.

`torch.utils.tensorboard.SummaryWriter` writes an event for every scalar, reads every
value from the device by itself, and keeps hyperparameters in a run of their own. Here
all values of a step are one event, and everything about a training is one run.
"""

import itertools
import os
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, SupportsFloat

from tensorboard.compat.proto import summary_pb2
from torch.utils.tensorboard import summary as torch_summary

from minitrain.runs import hparams
from minitrain.runs.charts import Category, layout
from minitrain.runs.descriptions import add_description
from minitrain.runs.events import Event, EventFile, first_record
from minitrain.runs.images import as_png
from minitrain.runs.points import keep_until

FLUSH_SECONDS = 0.5
"""A point is on disk at the latest this long after `log` or `beat` could see it."""

_numbers = itertools.count()

# A class that protobuf makes at run time, where no type checker sees it.
Summary: Any = vars(summary_pb2)["Summary"]


class Board:
    """The event file of one run, to be closed, or used in a `with`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Board(Path(folder)) as board:
    ...     board.log(1, {"loss/train": 0.5, "lr": 0.1})

    A disk that is full for a while costs no point: they wait, and are written later.

    Args:
        folder: The run directory.
        resume_after: A step up to which the events in the folder are kept and
            continued. Later ones are dropped: a step is there once, whatever happened.
        owner: The last part of the names of the run's event files; files of others are
            not touched.
        keeps_pictures: Whether pictures up to that step are kept as well; otherwise a
            run that is continued draws its pictures anew, at its end.

    Raises:
        OSError: The file cannot be created.
    """

    def __init__(
        self,
        folder: Path | str,
        resume_after: int | None = None,
        owner: str = "",
        *,
        keeps_pictures: bool = False,
    ) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        number = f"{time.time():.6f}.{os.getpid()}.{next(_numbers)}"
        path = folder / f"events.out.tfevents.{number}{owner}"
        if resume_after is None:
            path.touch(exist_ok=False)
        else:
            path = keep_until(resume_after, folder, path, owner, keeps_pictures)
        self._file = EventFile(path)
        self._last_flush = time.monotonic()
        self._described: set[str] = set()
        if resume_after is None:
            self._file.add(first_record())
            self._file.flush()

    def log(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Write the scalars of a step, as one event; a tensor of one element is one."""
        scalars = [
            Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()
        ]
        self._write_summary(Summary(value=scalars), step)
        self.beat()

    def beat(self) -> None:
        """Flush where the last flush is half a second old; costs nothing otherwise.

        Called at every step it keeps the loss of a crash below a second of points.
        """
        if time.monotonic() - self._last_flush >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Hand all points to the system.

        What was flushed survives the death of the process, by whatever signal.
        """
        self._last_flush = time.monotonic()
        self._file.flush()

    def sync(self) -> None:
        """Flush, and wait until the points are on disk: they survive a power cut."""
        self._last_flush = time.monotonic()
        self._file.sync()

    def text(self, tag: str, markdown: str, step: int = 0) -> None:
        """Show a text, in Markdown."""
        self._write_summary(torch_summary.text(tag, markdown), step)

    def image(self, tag: str, picture: Any, step: int = 0) -> None:
        """Show a picture: a figure, a PNG file, or a uint8 tensor; see `as_png`."""
        png = as_png(picture)
        width, height = struct.unpack(">II", png[16:24])  # PNG's header chunk
        image = Summary.Image(width=width, height=height, encoded_image_string=png)
        summary = Summary(value=[Summary.Value(tag=tag, image=image)])
        self._write_summary(summary, step)

    def histogram(self, tag: str, counts: Sequence[float], step: int) -> None:
        """Show how large many values are, as a histogram of their log2.

        Args:
            tag: What they are.
            counts: How many fell between k and k + 1, for k from -48, as `log2_counts`
                counts them.
            step: When.
        """
        limits = [float(k - 47) for k in range(len(counts))]
        middles = [limit - 0.5 for limit in limits]
        histogram = Summary.Value(tag=tag).histo
        histogram.min, histogram.max = limits[0] - 1, limits[-1]
        histogram.num = sum(counts)
        histogram.sum = sum(n * x for n, x in zip(counts, middles, strict=True))
        squares = (n * x * x for n, x in zip(counts, middles, strict=True))
        histogram.sum_squares = sum(squares)
        histogram.bucket_limit.extend(limits)
        histogram.bucket.extend(counts)
        value = Summary.Value(tag=tag, histo=histogram)
        self._write_summary(Summary(value=[value]), step)

    def layout(self, categories: Sequence[Category], prefix: str = "") -> None:
        """Arrange the page Custom Scalars.

        Args:
            categories: Its charts; see `minitrain.runs.charts`.
            prefix: A regular expression of what may stand before the tags.
        """
        self._write_summary(layout(categories, prefix))

    def start_hparams(
        self, run: str, settings: hparams.Values, metrics: Sequence[str]
    ) -> None:
        """Open the row of the run in the HParams table.

        Args:
            run: The name of the row.
            settings: What the run was made with.
            metrics: Tags of the scalars that its columns show.
        """
        self._write_summary(hparams.columns(settings, metrics))
        self._write_summary(hparams.row(run, settings))

    def end_hparams(self, succeeded: bool) -> None:
        """Close the row of the run, with how it ended."""
        self._write_summary(hparams.end(succeeded))

    def close(self) -> None:
        """Flush, and close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _write_summary(self, summary: Any, step: int = 0) -> None:
        """Write an event; the first value of a tag carries its description."""
        for value in summary.value:
            if value.tag not in self._described:
                self._described.add(value.tag)
                add_description(value)
        event = Event(step=step, wall_time=time.time(), summary=summary)
        self._file.add(event.SerializeToString())
