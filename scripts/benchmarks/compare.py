"""Timing several sides of one comparison in turn, so that all see the same machine."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

Work = Callable[[], Any]


class Row(NamedTuple):
    """One comparison: seconds of minitrain and of its peer, and their ratio."""

    name: str
    peer: str
    ours: float
    theirs: float
    ratio: float
    ratios: list[float]
    note: str = ""

    def __str__(self) -> str:
        return (
            f"{self.name:42}  {self.peer:26}  {_short(self.ours)}  "
            f"{_short(self.theirs)}  {self.ratio:5.2f} "
            f"({min(self.ratios):.2f} to {max(self.ratios):.2f})  {self.note}"
        )


def _short(seconds: float) -> str:
    return f"{seconds:8.3f} s" if seconds >= 0.1 else f"{1000 * seconds:7.3f} ms"


def timed(works: dict[str, Work], rounds: int) -> dict[str, list[float]]:
    """The seconds of every round of each work, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    return {name: seconds[1:] for name, seconds in times.items()}


def in_turn(
    ours: Iterator[Any], theirs: Iterator[Any], num_steps: int = 10
) -> tuple[float, float]:
    """The seconds of two equally long loops that take some steps each in turn."""
    sides, seconds, is_over = [(0, ours), (1, theirs)], [0.0, 0.0], False
    while not is_over:
        for side, steps in sides:
            start = time.perf_counter()
            is_over = sum(1 for _ in itertools.islice(steps, num_steps)) < num_steps
            seconds[side] += time.perf_counter() - start
        sides.reverse()
    return seconds[0], seconds[1]


def row(name: str, ours: list[float], peer: str, theirs: list[float]) -> Row:
    """Medians of the rounds, and the median of the rounds' ratios."""
    ratios = [mine / its for mine, its in zip(ours, theirs, strict=True)]
    return Row(
        name,
        peer,
        statistics.median(ours),
        statistics.median(theirs),
        statistics.median(ratios),
        ratios,
    )


def compare(name: str, ours: Work, peer: str, theirs: Work, rounds: int) -> Row:
    """Time both in turn."""
    times = timed({"ours": ours, "theirs": theirs}, rounds)
    return row(name, times["ours"], peer, times["theirs"])
