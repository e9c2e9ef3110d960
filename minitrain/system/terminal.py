"""What is printed, so that no output in the world ends a training."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from typing import TextIO

from minitrain.system.errors import MinitrainError, Stopped, StorageError

BUG = 70
"""The exit code after an error that nobody foresaw."""

is_silent = False
"""Whether `say` says nothing, because another process says the same."""

# Control characters, which act on a terminal, as what stands for them in Python.
_ESCAPES = {
    code: f"\\x{code:02x}" for code in (*range(10), *range(11, 32), *range(127, 160))
}


def warn(line: str) -> None:
    """Print a line on standard error, if it can be."""
    with suppress(OSError):
        print(line.translate(_ESCAPES), file=sys.stderr)


def exit_code(main: Callable[[], int], debug: bool = False) -> int:
    """Run a command; print what went wrong, and return the exit code.

    Args:
        main: The command, which returns its exit code.
        debug: Print the traceback of errors for people, too.

    Returns:
        What `main` returns; the exit code of an error for people, 128 and its number
        after a signal, 0 where nobody reads the output any more, and `BUG` after any
        other error, whose traceback is printed.
    """
    _open_streams()
    try:
        return main()
    except MinitrainError as error:
        _print_traceback(debug)
        warn(f"error: {error}")
        return error.exit_code
    except BrokenPipeError:  # whoever reads the output, `head` perhaps, has seen enough
        return 0
    except OSError as error:
        _print_traceback(debug)
        warn(f"error: reading or writing failed: {error}")
        return StorageError.exit_code
    except Stopped as stopped:
        return 128 + stopped.number
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception:
        _print_traceback(True)
        return BUG
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                discard(stream)  # Python itself would fail over it once more


def _print_traceback(is_wanted: bool) -> None:
    """Print the traceback of the error that is handled, if it can be."""
    if is_wanted:
        with suppress(OSError):
            traceback.print_exc()


def _open_streams() -> None:
    """Let nothing fail that is printed, to a closed stream or in another encoding."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def discard(stream: TextIO) -> None:
    """Drop what could not be printed to a stream, and all that will be."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(line: str) -> None:
    """Print a line above the progress bar; a reader who has left stops no training."""
    if is_silent:
        return
    from tqdm import tqdm  # takes longer to import than a short answer should

    try:
        tqdm.write(line)
        sys.stdout.flush()  # into a pipe, too: "saved" is printed when it is true
    except OSError as error:
        discard(sys.stdout)
        warn(f"warning: no more lines can be printed: {error}; training goes on")
