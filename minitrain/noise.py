"""The gradient noise scale: how large a batch has to be for its gradient to be sure.

The gradient of a batch of B samples is the true one, G, plus noise, tr(Sigma) / B in
the mean square, where Sigma is the covariance of the gradients of single samples. Both
are the same size at B = tr(Sigma) / |G|^2, the noise scale: below it, a batch twice as
large allows a step about twice as long; above it, most of the work is wasted.

Source: McCandlish et al., An empirical model of large-batch training, 2018.
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle


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

    def update(
        self, mean_square: float, batch_square: float, num_samples: int
    ) -> None:
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


@contextmanager
def per_sample_norms(
    model: nn.Module, *, check: bool = True
) -> Iterator["PerSampleNorms"]:
    """Watch the forward and backward passes of one step for |grad l_i|^2.

    The backward pass computes for each layer the derivatives of the loss by its outputs,
    sample by sample, and adds up their products with its inputs to the gradient. The
    lengths of the addends follow from the same two tensors, at the cost of a fraction
    of a pass. Gradients and everything else stay as they are without.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> inputs = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    >>> with per_sample_norms(model) as norms:
    ...     model(inputs).mean().backward()
    >>> norms.squared(num_samples=2)
    tensor([25.,  4.])

    Known are trainable parameters of `nn.Linear` and `nn.Conv2d`; for models with others
    the norms are withheld and `norms.withheld` says why.

    check   whether to make sure that the addends add up to the gradient: they do not
            where a parameter is used outside of its layer, or the loss has a term, such
            as a penalty, that belongs to no sample. For a loop that does the same in
            every step, once is enough.
    """
    norms = PerSampleNorms(model, check)
    try:
        yield norms
    finally:
        norms.close()


class PerSampleNorms:
    """The squared lengths |grad l_i|^2 of the gradients of single samples.

    `per_sample_norms` makes them. What was differentiated, in one backward pass or in
    several, must in total be the mean (1/n) sum_i l_i over all n samples, where l_i
    depends on nothing but the i-th entry of the first dimension. BatchNorm, which
    breaks that, is recognised; other code that mixes samples is not.
    """

    def __init__(self, model: nn.Module, check: bool) -> None:
        self.withheld = _obstacle(model)
        """Why there are no norms, or None."""
        self._handles: list[RemovableHandle] = []
        self._layers: list[_Layer] = []
        if self.withheld is None:
            for name, module in model.named_modules():
                if isinstance(module, nn.Linear | nn.Conv2d) and _trainable(module):
                    self._layers.append(_Layer(name, module, self, check))

    def squared(self, num_samples: int) -> Tensor | None:
        """|grad l_i|^2 of all n samples in the order they came in, shape (n,).

        float32, or float64 where the model is. None where `withheld` says why, also
        where it turns out only now that the norms would be wrong.
        """
        for layer in self._layers:
            self.withhold(layer.name, layer.obstacle(num_samples))
        if self.withheld is not None:
            return None
        squares = [torch.cat(layer.squares) for layer in self._layers]
        # Each derivative was that of l_i / n.
        return torch.stack(squares).sum(dim=0) * num_samples**2

    def withhold(self, name: str, reason: str | None) -> None:
        """Give up for a reason; the first one is kept."""
        if self.withheld is None and reason is not None:
            self.withheld = f"{name or 'the model'}: {reason}"

    def keep(self, handle: RemovableHandle) -> None:
        """Have a hook removed at the end."""
        self._handles.append(handle)

    def close(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


class _Layer:
    """One layer's share of the norms, and whether it is right.

    A bias is the weight of a constant input 1, so that a layer has one rule: with the
    inputs x_il and the derivatives d_il at the places l of sample i (the positions of a
    convolution, one for an ordinary linear layer), its gradient is sum_il d_il x_il^T.
    """

    def __init__(
        self,
        name: str,
        module: nn.Linear | nn.Conv2d,
        norms: PerSampleNorms,
        check: bool,
    ) -> None:
        self.name = name
        self.squares: list[Tensor] = []
        self._module = module
        self._norms = norms
        self._check = check
        trainable = _trainable(module)
        self._has_weight, self._has_bias = "weight" in trainable, "bias" in trainable
        self._waiting = False
        # The gradient times a fixed direction: as the samples give it, and as it
        # reached the parameters.
        self._given: list[Tensor] = []
        self._reached: list[Tensor] = []

        norms.keep(
            module.register_forward_hook(
                self._guarded(self._on_call), prepend=True, with_kwargs=True
            )
        )
        if check:
            for parameter in trainable.values():
                hook = self._guarded(self._on_parameter_gradient)
                norms.keep(parameter.register_hook(hook))

    def obstacle(self, num_samples: int) -> str | None:
        """Why its norms cannot be right, or None."""
        if self._waiting:
            return "it was called, but no gradient came back to it"
        if not self.squares:
            return "it was not called"
        seen = sum(len(squares) for squares in self.squares)
        if seen != num_samples:
            return f"its input has {seen} entries, for {num_samples} samples"
        if self._check and not self._adds_up():
            return (
                "its gradient is not the sum over the samples of what came back to it: "
                "a parameter is used elsewhere too, or the gradient was changed or is "
                "not finite"
            )
        return None

    def _adds_up(self) -> bool:
        given = torch.stack(self._given).sum(dim=0)
        reached = sum(self._reached, torch.zeros_like(given))
        scale = torch.cat(self.squares).sqrt().sum()
        # Half of the digits: more are lost only where the addends cancel.
        tolerance = math.sqrt(self._eps) * scale
        return bool((given - reached).abs().max() <= tolerance)

    def _guarded(self, hook: Callable[..., None]) -> Callable[..., None]:
        """The hook, unable to end a training that it only watches."""

        def guarded(*args: Any) -> None:
            try:
                hook(*args)
            except Exception as error:
                self._norms.withhold(self.name, f"{type(error).__name__}: {error}")

        return guarded

    def _on_call(
        self, _: nn.Module, args: Any, kwargs: dict[str, Any], output: Tensor
    ) -> None:
        if not output.requires_grad:
            return
        if self._waiting:
            self._norms.withhold(self.name, "it was called more than once in a pass")
        self._waiting = True
        inputs = (args[0] if args else kwargs["input"]).detach()
        hook = self._guarded(functools.partial(self._on_output_gradient, inputs))
        self._norms.keep(output.register_hook(hook))

    def _on_output_gradient(self, inputs: Tensor, delta: Tensor) -> None:
        if not self._waiting:
            self._norms.withhold(self.name, "more than one gradient came back to it")
        self._waiting = False
        if self._norms.withheld is not None:
            return
        # The layer itself has rounded its inputs to the dtype that autocast asks for.
        x, d = inputs.to(delta.dtype), delta.detach()
        self._eps = torch.finfo(d.dtype).eps
        with torch.autocast(d.device.type, enabled=False):
            x, d = _columns(self._module, _at_least_float(x), _at_least_float(d))
            squares = self._squares(x, d)
            if len(squares) != len(delta):  # one for each group of a convolution
                squares = squares.view(len(delta), -1).sum(dim=1)
            self.squares.append(squares)
            if self._check:
                along = self._along_direction(x, d)
                self._given.append(along.view(len(delta), -1).sum(dim=0))

    def _squares(self, x: Tensor, d: Tensor) -> Tensor:
        """|sum_l d_l x_l^T|^2 for each sample, from (B, K, L) and (B, O, L): (B,).

        It is sum_lm (x_l . x_m) (d_l . d_m), too: |x|^2 |d|^2 for a single place.
        Source: Goodfellow, Efficient per-example gradient computations, 2015; for more
        places Li et al., Large language models can be strong differentially private
        learners, 2021.
        """
        num_inputs, num_outputs, num_places = x.shape[1], d.shape[1], x.shape[2]
        if num_places == 1:
            squares = torch.linalg.vector_norm(d, dim=(1, 2)).square()
            if not self._has_weight:
                return squares
            lengths = torch.linalg.vector_norm(x, dim=(1, 2))
            return squares * (lengths.square() + int(self._has_bias))
        if num_places * (num_inputs + num_outputs) < num_inputs * num_outputs:
            similar = torch.bmm(x.mT, x) if self._has_weight else 0
            similar = similar + int(self._has_bias)
            return (similar * torch.bmm(d.mT, d)).sum(dim=(1, 2))
        squares = x.new_zeros(len(x))
        if self._has_weight:
            squares += torch.bmm(d, x.mT).square().sum(dim=(1, 2))
        if self._has_bias:
            squares += d.sum(dim=2).square().sum(dim=1)
        return squares

    def _along_direction(self, x: Tensor, d: Tensor) -> Tensor:
        """sum_l d_l (x_l . v) for each sample and a fixed v: (B, O)."""
        along = x.new_full((len(x), x.shape[2]), float(self._has_bias))
        if self._has_weight:
            along += _direction(x.shape[1], x.dtype, x.device) @ x
        return torch.bmm(d, along.unsqueeze(2)).squeeze(2)

    def _on_parameter_gradient(self, grad: Tensor) -> None:
        grad = _at_least_float(grad.detach())
        if grad.dim() > 1:
            rows = grad.flatten(1)
            with torch.autocast(grad.device.type, enabled=False):
                grad = rows @ _direction(rows.shape[1], grad.dtype, grad.device)
        self._reached.append(grad)


def _trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The module's own trainable parameters."""
    return {
        attribute: parameter
        for attribute, parameter in module._parameters.items()
        if parameter is not None and parameter.requires_grad
    }


def _obstacle(model: nn.Module) -> str | None:
    """Why the model's per-sample norms are not known, or None."""
    owners: dict[nn.Parameter, str] = {}
    for prefix, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, _BatchNorm) and (
            module.training or module.running_mean is None
        ):
            return f"{prefix or 'the model'}: {kind} mixes the samples of a batch"
        known = type(module) in (nn.Linear, nn.Conv2d)
        for attribute, parameter in _trainable(module).items():
            name = f"{prefix}.{attribute}" if prefix else attribute
            if not known or attribute not in ("weight", "bias"):
                return f"{name}: known are weight and bias of Linear and Conv2d, not of {kind}"
            if not parameter.is_floating_point():
                return f"{name}: of dtype {parameter.dtype}, which is not real"
            if parameter in owners:
                return f"{name}: it is {owners[parameter]} too"
            owners[parameter] = name
    return None if owners else "the model has no trainable parameter"


def _columns(
    module: nn.Linear | nn.Conv2d, inputs: Tensor, delta: Tensor
) -> tuple[Tensor, Tensor]:
    """The inputs x_il and the derivatives d_il as columns: (B, K, L) and (B, O, L).

    Of a convolution a column of inputs is the patch that a position sees. Each group of
    its channels counts as a sample of its own: B is then samples * groups.
    """
    if isinstance(module, nn.Linear):
        if inputs.dim() < 2:
            raise ValueError("its input has no dimension for the samples")
        batch = len(inputs)
        return (
            inputs.reshape(batch, -1, inputs.shape[-1]).mT,
            delta.reshape(batch, -1, delta.shape[-1]).mT,
        )
    if inputs.dim() < 4:
        raise ValueError("its input has no dimension for the samples")
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(inputs, module._reversed_padding_repeated_twice, mode)
    patches = padded
    for axis, size, step, gap in zip(
        (2, 3), module.kernel_size, module.stride, module.dilation, strict=True
    ):
        patches = patches.unfold(axis, gap * (size - 1) + 1, step)[..., ::gap]
    patches = patches.permute(0, 1, 4, 5, 2, 3)  # (N, channels, *kernel, *positions)
    num, places = len(inputs) * module.groups, delta[0, 0].numel()
    return patches.reshape(num, -1, places), delta.reshape(num, -1, places)


@functools.cache
def _direction(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A fixed random vector with components of size 1."""
    generator = torch.Generator().manual_seed(size)
    return torch.randn(size, generator=generator, dtype=dtype).to(device)


def _at_least_float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
