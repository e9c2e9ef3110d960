"""Memory that is not there, reported as an error for people."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from minitrain.system.errors import SettingsError


@contextmanager
def enough_memory(remedy: str) -> Iterator[None]:
    """Turn a failed request for memory into an error that says what to do.

    Args:
        remedy: A sentence on what to lower.

    Raises:
        SettingsError: Python, torch or its device has not got the memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        words = "not enough memory|can't allocate memory|out of memory"
        if isinstance(error, RuntimeError) and not re.search(words, text, re.I):
            raise
        size = re.search(r"tried to allocate ([\d.]+) ?([kMG]iB)?", text, re.I)
        asked = ""
        if size is not None:
            unit = size[2] or "GiB"
            number = float(size[1]) if size[2] else float(size[1]) / 2**30
            asked = f": {number:.1f} {unit} were asked for at once"
        raise SettingsError(
            f"there is not enough memory{asked}. {remedy} What was saved is safe"
        ) from error
