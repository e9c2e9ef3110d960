"""The points of a run: kept when it is continued, and read to be drawn."""

import operator
from collections.abc import Iterable
from pathlib import Path

from minitrain.runs.events import Event, Scan, first_record, framed, scan
from minitrain.runs.tags import AT_THE_END
from minitrain.system.files import replacing
from minitrain.system.terminal import warn


def keep_until(step: int, folder: Path, path: Path) -> None:
    """Gather the events up to a step, of all files in a folder, in one file.

    The order of steps decides, not that of clocks or names, which can go backwards.
    Old files are removed when the new one is complete. One of which a part cannot be
    read is kept, renamed `*.corrupt`, and one that cannot be opened stays; both are
    told. What is no file is ignored.

    Args:
        step: The last one to keep.
        folder: Where the event files are.
        path: The new file.

    Raises:
        OSError: The new file cannot be written, or an old one not be removed.
    """
    kept, scans = [(0, first_record())], _scan_all(folder)
    for record in _unique(scans.values()):
        event = Event.FromString(record)
        # The end comes anew: how the run ended, and what is told and shown then.
        is_end = any(
            value.tag in AT_THE_END or value.HasField("image")
            for value in event.summary.value
        )
        if event.summary.value and event.step <= step and not is_end:
            kept.append((event.step, record))
    with replacing(path) as file:
        for _, record in sorted(kept, key=operator.itemgetter(0)):
            file.write(framed(record))
    for file, found in scans.items():
        # A kill cuts off the last record, but what belongs to a checkpoint was on disk
        # before: the end matters where it comes too early.
        num_bytes = found.num_damaged + (found.num_at_end if found.last < step else 0)
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


def read_curves(folder: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Read the scalars of a run.

    What cannot be read is told, and left as it is.

    Returns:
        Steps and values by tag, in the order of steps.
    """
    scans = _scan_all(folder)
    for file, found in scans.items():
        if found.num_damaged:
            warn(
                f"warning: points after step {found.last_before} may be missing: "
                f"{found.num_damaged} bytes of {file} cannot be read"
            )
    curves: dict[str, tuple[list[int], list[float]]] = {}
    events = map(Event.FromString, _unique(scans.values()))
    for event in sorted(events, key=operator.attrgetter("step")):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                steps, values = curves.setdefault(value.tag, ([], []))
                steps.append(event.step)
                values.append(value.simple_value)
    return curves


def _unique(scans: Iterable[Scan]) -> Iterable[bytes]:
    """Return every record once: a kill may leave a copy beside the original."""
    return dict.fromkeys(record for found in scans for record in found.records)


def _scan_all(folder: Path) -> dict[Path, Scan]:
    """Read all event files in a folder; one that cannot be opened is told."""
    scans = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        try:
            if file.is_file():
                scans[file] = scan(file)
        except OSError as error:
            warn(f"warning: points for TensorBoard may be missing: {error}")
    return scans
