"""The gradient noise scale: how large a batch has to be for its gradient to be sure.

The gradient of a batch of B samples is the true one, G, plus noise, tr(Sigma) / B in
the mean square, where Sigma is the covariance of the gradients of single samples. Both
are the same size at B = tr(Sigma) / |G|^2, the noise scale: below it, a batch twice as
large allows a step about twice as long; above it, most of the work is wasted.

Source: McCandlish et al., An empirical model of large-batch training, 2018.
"""

import math
from typing import Any, NamedTuple


class NoiseEstimate(NamedTuple):
    """What one batch tells: unbiased, but far from sure; |G|^2 may be negative."""

    gradient_square: float
    """|G|^2, the squared length of the true gradient."""
    trace: float
    """tr(Sigma), the mean squared distance of a sample's gradient from G."""


def noise_estimate(
    mean_square: float, batch_square: float, num_samples: int
) -> NoiseEstimate:
    """|G|^2 and tr(Sigma) from the gradients g_i of B samples and their mean g_B.

    |G|^2 = (B |g_B|^2 - s) / (B - 1) and tr(Sigma) = (s - |g_B|^2) / (1 - 1/B), where
    s = mean_i |g_i|^2 (`mean_square`), |g_B|^2 is `batch_square`, and B `num_samples`.
    For g_1 = (3, 0) and g_2 = (1, 2), of mean (2, 1):

    >>> noise_estimate(mean_square=(9 + 5) / 2, batch_square=5, num_samples=2)
    NoiseEstimate(gradient_square=3.0, trace=4.0)

    Raises ValueError where B < 2: one sample has no distance from the mean.
    """
    if num_samples < 2:
        raise ValueError(f"num_samples = {num_samples}: noise shows from 2 samples on")
    return NoiseEstimate(
        (num_samples * batch_square - mean_square) / (num_samples - 1),
        (mean_square - batch_square) / (1 - 1 / num_samples),
    )


class NoiseScale:
    """The noise scale of a run: both estimates smoothed, and only then divided.

    Of a noisy quotient the mean is not the quotient of the means. Each estimate has an
    exponential moving average, m <- decay m + (1 - decay) x, divided by 1 - decay^t for
    its start at zero.

    >>> noise = NoiseScale()
    >>> noise.update(mean_square=7.0, batch_square=5.0, num_samples=2)
    >>> noise.value
    1.3333333333333333

    Raises ValueError where decay is not in [0, 1).
    """

    def __init__(self, decay: float = 0.95) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay = {decay}: must be in [0, 1)")
        self.decay = decay
        self._num_updates = 0
        self._averages = NoiseEstimate(0.0, 0.0)

    def update(self, mean_square: float, batch_square: float, num_samples: int) -> None:
        """Take in a batch, with the arguments of `noise_estimate`.

        A batch of one sample, or with a gradient that is not finite, tells nothing and
        is passed over.
        """
        finite = math.isfinite(mean_square) and math.isfinite(batch_square)
        if num_samples < 2 or not finite:
            return
        estimate = noise_estimate(mean_square, batch_square, num_samples)
        self._num_updates += 1
        self._averages = NoiseEstimate(
            *(
                self.decay * average + (1 - self.decay) * x
                for average, x in zip(self._averages, estimate, strict=True)
            )
        )

    @property
    def estimate(self) -> NoiseEstimate | None:
        """The smoothed |G|^2 and tr(Sigma); None before the first update."""
        if self._num_updates == 0:
            return None
        weight = 1 - self.decay**self._num_updates
        return NoiseEstimate(*(average / weight for average in self._averages))

    @property
    def value(self) -> float | None:
        """tr(Sigma) / |G|^2, in samples.

        None while it is unresolved: before the first update, and where the smoothed
        |G|^2 is not positive, because the noise still hides the gradient.
        """
        estimate = self.estimate
        if estimate is None or not estimate.gradient_square > 0:
            return None
        # Rounding alone can make the trace of gradients that are all equal negative.
        return max(estimate.trace, 0.0) / estimate.gradient_square

    @property
    def batch_size(self) -> int | None:
        """The power of two nearest to the noise scale, on a log axis; at least 1."""
        value = self.value
        if value is None or not math.isfinite(value):
            return None
        return 2 ** round(math.log2(max(value, 1.0)))

    def state_dict(self) -> dict[str, float | int]:
        """Plain numbers, from which `load_state_dict` goes on to the last bit."""
        return {
            "decay": self.decay,
            "num_updates": self._num_updates,
            **self._averages._asdict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.decay = state["decay"]
        self._num_updates = state["num_updates"]
        self._averages = NoiseEstimate(state["gradient_square"], state["trace"])
