"""What is logged of every parameter, kept in bounded memory to be drawn as a map."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from minitrain import tags

MOST_STEPS = 512
"""How many columns a map keeps besides the last: as many as a screen can show."""


class LayerMap:
    """One quantity of each parameter (rows) over the steps (columns).

    Every step is kept while there are few; when there are more, every second one, then
    every fourth, and so on, as if it had been so from the start. The last one is always
    there.

    >>> layers = LayerMap(most=2)
    >>> for step in (1, 10, 20, 30, 40, 50):
    ...     layers.take(step, {"weight": step / 10})
    >>> layers.steps, layers.values
    ([1, 40, 50], tensor([[0.1000, 4.0000, 5.0000]]))
    """

    def __init__(self, most: int = MOST_STEPS) -> None:
        self._names: dict[str, None] = {}  # a set with an order
        self._most, self._stride, self._num_taken = most, 1, 0
        self._kept: list[tuple[int, list[float]]] = []
        self._last: list[tuple[int, list[float]]] = []

    def take(self, step: int, values: Mapping[str, float]) -> None:
        """Take in the values of a step, by the names of the parameters."""
        self._names |= dict.fromkeys(values)
        column = step, [values.get(name, math.nan) for name in self._names]
        is_kept = self._num_taken % self._stride == 0
        self._num_taken += 1
        self._last = [] if is_kept else [column]
        if is_kept:
            self._kept.append(column)
        if len(self._kept) > self._most:
            self._last = self._kept[-1:] if len(self._kept) % 2 == 0 else []
            self._kept, self._stride = self._kept[::2], 2 * self._stride

    @property
    def names(self) -> list[str]:
        """The names of the rows, in the order in which they came."""
        return [*self._names]

    @property
    def steps(self) -> list[int]:
        """The step of each column."""
        return [step for step, _ in self._kept + self._last]

    @property
    def values(self) -> Tensor:
        """The values, shape (names, steps), in float32, as the event file has them.

        NaN stands where a parameter has no value.
        """
        width = len(self._names)
        columns = [x for _, x in self._kept + self._last]
        padded = [x + [math.nan] * (width - len(x)) for x in columns]
        return torch.tensor(padded, dtype=torch.float32).reshape(-1, width).T


class LayerMaps:
    """The maps of a run, by the tags of their pictures.

    Args:
        points: Steps and values that were logged before, of a run that goes on.
    """

    def __init__(self, points: Iterable[tuple[int, Mapping[str, float]]] = ()) -> None:
        self.grad_norms, self.update_ratios = LayerMap(), LayerMap()
        for step, values in points:
            self.take(step, values)

    def take(self, step: int, values: Mapping[str, float]) -> None:
        """Take in what is logged of a step, by tags."""
        self._take(self.grad_norms, f"{tags.GRAD_NORM}/", step, values)
        self._take(self.update_ratios, f"{tags.UPDATE_RATIO}/", step, values)

    def _take(
        self, layers: LayerMap, start: str, step: int, values: Mapping[str, float]
    ) -> None:
        each = {
            k.removeprefix(start): x for k, x in values.items() if k.startswith(start)
        }
        each.pop(tags.WHOLE, None)
        if each:
            layers.take(step, each)
