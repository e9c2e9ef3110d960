"""The gradient noise scale: how large a batch has to be for its gradient to be sure.

The gradient of a batch of B samples is the true one, G, plus noise, tr(Sigma) / B in
the mean square, where Sigma is the covariance of the gradients of single samples. Both
are the same size at B = tr(Sigma) / |G|^2, the noise scale: below it, a batch twice as
large allows a step about twice as long; above it, most of the work is wasted.

Source: McCandlish et al., An empirical model of large-batch training, 2018.
"""

import dataclasses
import math
from typing import NamedTuple

from minitrain import tags


class NoiseEstimate(NamedTuple):
    """What one batch tells: unbiased, but far from sure; |G|^2 may be negative."""

    gradient_square: float
    """|G|^2, the squared norm of the true gradient."""
    trace: float
    """tr(Sigma), the mean squared distance of a sample's gradient from G."""


def noise_estimate(
    mean_square: float, batch_square: float, num_samples: int
) -> NoiseEstimate:
    """Return |G|^2 and tr(Sigma) from the gradients g_i of B samples and their mean.

    |G|^2 = (B |g_B|^2 - s) / (B - 1) and tr(Sigma) = (s - |g_B|^2) / (1 - 1/B). For
    g_1 = (3, 0) and g_2 = (1, 2), of mean (2, 1):

    >>> noise_estimate(mean_square=(9 + 5) / 2, batch_square=5, num_samples=2)
    NoiseEstimate(gradient_square=3.0, trace=4.0)

    Args:
        mean_square: s = mean_i |g_i|^2.
        batch_square: |g_B|^2, where g_B = mean_i g_i is the gradient of the batch.
        num_samples: B.

    Raises:
        ValueError: B < 2: one sample has no distance from the mean.
    """
    if num_samples < 2:
        raise ValueError(f"num_samples = {num_samples}: noise shows from 2 samples on")
    return NoiseEstimate(
        (num_samples * batch_square - mean_square) / (num_samples - 1),
        (mean_square - batch_square) / (1 - 1 / num_samples),
    )


@dataclasses.dataclass(frozen=True)
class NoiseScale:
    """The noise scale of a run: both estimates smoothed, and only then divided.

    Of a noisy quotient the mean is not the quotient of the means. Each estimate has an
    exponential moving average, m <- decay m + (1 - decay) x, divided by 1 - decay^t for
    its start at zero.

    >>> NoiseScale().update(NoiseEstimate(gradient_square=3.0, trace=4.0)).value
    1.3333333333333333

    Raises:
        ValueError: decay is not in [0, 1).
    """

    decay: float = 0.95
    num_updates: int = 0
    """t"""
    gradient_square: float = 0.0
    """The average of |G|^2, not yet divided."""
    trace: float = 0.0
    """The average of tr(Sigma), not yet divided."""

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay = {self.decay}: must be in [0, 1)")

    def update(self, estimate: NoiseEstimate) -> "NoiseScale":
        """Return the noise scale with one more batch; this one stays as it is.

        An estimate that is not finite tells nothing and is passed over.
        """
        if not all(map(math.isfinite, estimate)):
            return self
        averages = zip((self.gradient_square, self.trace), estimate, strict=True)
        return NoiseScale(
            self.decay,
            self.num_updates + 1,
            *(self.decay * average + (1 - self.decay) * x for average, x in averages),
        )

    @property
    def estimate(self) -> NoiseEstimate | None:
        """The smoothed |G|^2 and tr(Sigma); None before the first update."""
        if self.num_updates == 0:
            return None
        weight = 1 - self.decay**self.num_updates
        return NoiseEstimate(self.gradient_square / weight, self.trace / weight)

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

    def signal_share(self, num_samples: int) -> float | None:
        """Return |G|^2 / (|G|^2 + tr(Sigma) / B), the share of |g_B|^2 that is signal.

        >>> NoiseScale().update(NoiseEstimate(3.0, 4.0)).signal_share(num_samples=4)
        0.75

        None before the first update, and where there is neither signal nor noise.
        """
        if (estimate := self.estimate) is None:
            return None
        signal = max(estimate.gradient_square, 0.0)
        noise = max(estimate.trace, 0.0) / num_samples
        return signal / (signal + noise) if signal + noise > 0 else None

    def state_dict(self) -> dict[str, float | int]:
        """Return plain numbers, the arguments of an equal `NoiseScale`."""
        return dataclasses.asdict(self)


def read_noise(noise: NoiseScale, num_samples: int) -> dict[str, float]:
    """Return the readings of a noise scale, those that are resolved."""
    readings = {
        tags.NOISE_SCALE: noise.value,
        tags.SIGNAL_SHARE: noise.signal_share(num_samples),
    }
    return {tag: value for tag, value in readings.items() if value is not None}
