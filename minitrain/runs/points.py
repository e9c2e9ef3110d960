"""The points of a run: kept when it is continued, and read to be drawn."""

import operator
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tensorboard.plugins.hparams import metadata

from minitrain.runs.events import Event, Scan, blank, first_record, frame_record, scan
from minitrain.system.files import replacing
from minitrain.system.terminal import warn
from minitrain.tags import FINDINGS

AT_THE_END = (metadata.SESSION_END_INFO_TAG, f"{FINDINGS}/text_summary")
"""Tags of what is written when a run ends, and anew when it is continued."""


def keep_until(
    step: int, folder: Path, path: Path, owner: str = "", keeps_pictures: bool = False
) -> Path:
    """Keep the events of a run up to a step, and drop all later ones.

    One event file that is whole, and no link, goes on: what is dropped becomes blank in
    its place, so that a TensorBoard that has read it all reads on where it is.
    Otherwise all files are gathered in a new one, in the order of steps, not that of
    clocks or names, which can go backwards; the old ones are removed when the new one
    is complete. One of which a part cannot be read is kept, renamed `*.corrupt`, and
    one that cannot be opened stays; both are reported. Anything else is ignored.

    Args:
        step: The last one to keep.
        folder: Where the event files are.
        path: The new file, if there is to be one.
        owner: What the names of the run's event files end with.
        keeps_pictures: Whether pictures up to the step are kept.

    Returns:
        The file to go on with.

    Raises:
        OSError: The file cannot be written, or an old one not be removed.
    """
    scans = _scan_all(folder, owner)
    if len(scans) == 1:
        ((only, found),) = scans.items()
        begins_well = found.records and Event.FromString(found.records[0]).file_version
        is_whole = begins_well and not _count_missing(found, step)
        if is_whole and not only.is_symlink():
            _drop_in_place(only, found, step, keeps_pictures)
            return only
    kept = [(0, first_record())]
    for record in _unique(scans.values()):
        event = Event.FromString(record)
        if _is_kept(event, step, keeps_pictures):
            kept.append((event.step, record))
    with replacing(path) as file:
        for _, record in sorted(kept, key=operator.itemgetter(0)):
            file.write(frame_record(record))
    for file, found in scans.items():
        num_bytes = _count_missing(found, step)
        if not num_bytes:
            file.unlink()
            continue
        # TensorBoard reads whatever has "tfevents" in its name.
        corrupt = file.with_name(f"{file.name.replace('.tfevents', '')}.corrupt")
        file.rename(corrupt)
        warn(
            f"warning: points for TensorBoard after step {found.last_before} may be "
            f"missing: {num_bytes} bytes of {file} cannot be read; it is kept as "
            f"{corrupt.name}"
        )
    return path


def _is_kept(event: Any, step: int, keeps_pictures: bool) -> bool:
    """Whether a run that goes on after a step keeps an event, or writes it anew.

    The end comes anew: how the run ended, and what is written and shown then.
    """
    values = event.summary.value
    is_end = any(x.tag in AT_THE_END for x in values)
    if not keeps_pictures:
        is_end = is_end or any(x.HasField("image") for x in values)
    return bool(values) and event.step <= step and not is_end


def _count_missing(found: Scan, step: int) -> int:
    """Count the bytes that cannot be read, and may be of events up to a step.

    A kill cuts off the last record, but what belongs to a checkpoint was on disk
    before: the end matters where it comes too early.
    """
    return found.num_damaged + (found.num_at_end if found.last < step else 0)


def _drop_in_place(path: Path, found: Scan, step: int, keeps_pictures: bool) -> None:
    """Make the events blank that are not kept, without moving any other."""
    with open(path, "r+b") as file:
        for start, record in zip(found.starts[1:], found.records[1:], strict=True):
            event = Event.FromString(record)
            if len(record) >= 6 and not _is_kept(event, step, keeps_pictures):
                file.seek(start)
                file.write(frame_record(blank(len(record))))
        file.truncate(path.stat().st_size - found.num_at_end)
        file.flush()
        os.fsync(file.fileno())


def read_curves(folder: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Read the scalars of a run.

    What cannot be read is told, and left as it is.

    Returns:
        Steps and values by tag, in the order of steps.
    """
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for step, scalars in read_points(folder):
        for tag, scalar in scalars.items():
            steps, values = curves.setdefault(tag, ([], []))
            steps.append(step)
            values.append(scalar)
    return curves


def read_points(folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Read the scalars of a run, event by event.

    What cannot be read is told, and left as it is.

    Yields:
        Steps in their order, and values by tag.
    """
    scans = _scan_all(folder)
    for file, found in scans.items():
        if found.num_damaged:
            warn(
                f"warning: points after step {found.last_before} may be missing: "
                f"{found.num_damaged} bytes of {file} cannot be read"
            )
    events = map(Event.FromString, _unique(scans.values()))
    for event in sorted(events, key=operator.attrgetter("step")):
        values = event.summary.value
        scalars = {x.tag: x.simple_value for x in values if x.HasField("simple_value")}
        if scalars:
            yield event.step, scalars


def _unique(scans: Iterable[Scan]) -> Iterable[bytes]:
    """Return every record once: a kill may leave a copy beside the original."""
    return dict.fromkeys(record for found in scans for record in found.records)


def _scan_all(folder: Path, owner: str = "") -> dict[Path, Scan]:
    """Read the event files of an owner; one that cannot be opened is reported."""
    scans = {}
    for file in sorted(folder.glob(f"events.out.tfevents.*{owner}")):
        try:
            if file.is_file():
                scans[file] = scan(file)
        except OSError as error:
            warn(f"warning: points for TensorBoard may be missing: {error}")
    return scans
