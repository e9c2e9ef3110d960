"""What the readings of a step leave for those of later steps.

Nothing here is ever changed: a step makes a new memory from the old one, and whoever
reads a step beyond the cadence does not keep it.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minitrain.instruments.noise import NoiseScale
from minitrain.instruments.observation import Observation, Vector


class Path(NamedTuple):
    """The way that the parameters went, as straight lines from look to look."""

    start: Vector
    corner: Vector
    """Where the last line ended."""
    length: Tensor
    """Of all lines together, a 0-d tensor."""

    def extend(self, theta: Vector) -> "Path":
        """Return the path with one more line, to a copy of these parameters.

        >>> start, theta = Vector([torch.zeros(2)]), Vector([torch.tensor([3.0, 4.0])])
        >>> Path(start, start, torch.tensor(1.0)).extend(theta).length
        tensor(6.)
        """
        length = self.length + theta.minus(self.corner).norm
        return Path(self.start, theta.copy(), length)

    def distance(self, theta: Vector) -> Tensor:
        """Return |theta - start|, a 0-d tensor."""
        return theta.minus(self.start).norm


class Clipping(NamedTuple):
    """How many steps a loop that clips has made since the last look."""

    num_steps: int = 0
    num_clipped: int = 0

    @property
    def fraction(self) -> float:
        """The share of the steps that were clipped."""
        return self.num_clipped / self.num_steps

    def add(self, factor: float | None) -> "Clipping":
        """Return the numbers with one more step; without a factor it does not count.

        >>> Clipping(4, 1).add(0.5)
        Clipping(num_steps=5, num_clipped=2)
        """
        if factor is None:
            return self
        return Clipping(self.num_steps + 1, self.num_clipped + (factor < 1))


class Memory(NamedTuple):
    """What a panel knows of the steps before, and a checkpoint has to hold."""

    path: Path
    clipping: Clipping = Clipping()
    noise: NoiseScale = NoiseScale()
    first_loss: float = 0.0
    """The first that was audited; 0 before."""
    previous: Vector | None = None
    """The gradient of the step before a look, for that look."""

    @classmethod
    def begin(cls, theta: Vector) -> "Memory":
        """Return the memory of a training that begins at these parameters."""
        start = theta.copy()
        return cls(Path(start, start, start[0].new_zeros(())))

    def pass_over(self, clip_factor: float | None) -> "Memory":
        """Return the memory after a step that was not read."""
        return self._replace(clipping=self.clipping.add(clip_factor))

    def after(
        self, step: Observation, kinds: Collection[str], keeps_gradient: bool
    ) -> "Memory":
        """Return the memory after a step.

        Args:
            step: The step.
            kinds: The readings that count.
            keeps_gradient: Whether the next step compares its gradient with this one's.
        """
        looks, estimate = "look" in kinds, step.noise if "noise" in kinds else None
        audits = not {"audit", "truth"}.isdisjoint(kinds)
        return Memory(
            self.path.extend(step.after) if looks else self.path,
            Clipping() if looks else self.clipping.add(step.clip_factor),
            self.noise if estimate is None else self.noise.update(estimate),
            self.first_loss or (step.loss if audits else 0.0),
            step.gradient if keeps_gradient else None,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the memory as numbers, lists and tensors."""
        return {
            "start": [*self.path.start],
            "corner": [*self.path.corner],
            "path_length": self.path.length,
            "previous": None if self.previous is None else [*self.previous],
            "clipping": [*self.clipping],
            "first_loss": self.first_loss,
            "noise": self.noise.state_dict(),
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], theta: Vector) -> "Memory":
        """Return the memory that a state dict holds, on the devices of theta."""

        def place(tensors: Sequence[Tensor]) -> Vector:
            pairs = zip(tensors, theta, strict=True)
            return Vector(tensor.to(p.device) for tensor, p in pairs)

        previous = state["previous"]
        length = torch.as_tensor(state["path_length"], device=theta[0].device)
        return cls(
            Path(place(state["start"]), place(state["corner"]), length),
            Clipping(*state["clipping"]),
            NoiseScale(**state["noise"]),
            state["first_loss"],
            None if previous is None else place(previous),
        )
