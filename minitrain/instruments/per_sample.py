"""The norms of single samples' gradients, from the tensors of a backward pass.

The backward pass computes for each layer the derivatives of the loss by its outputs,
sample by sample, and adds up their products with its inputs to the gradient. The norms
of the addends follow from the same two tensors, at the cost of a fraction of a pass.

What a layer does with its parameters is one of three things, or several of them: it
multiplies by a matrix (`Products`), it scales each feature (`Scales`), or it looks up
rows of a table (`Lookups`). `per_sample_layers` says which layer does what.

Source: Goodfellow, Efficient per-example gradient computations, 2015; for more places
Li et al., Large language models can be strong differentially private learners, 2021.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import EllipsisType

import torch
from torch import Tensor

NO_SAMPLES = "its input has no dimension for the samples"

Rows = slice | EllipsisType


class Withheld(Exception):
    """The reason why there are no norms."""


@dataclasses.dataclass(slots=True, kw_only=True)
class Part(ABC):
    """What one use of a weight and a bias adds to the gradient, sample by sample."""

    inputs: Tensor
    """x, whose first dimension has the samples."""
    delta: Tensor
    """d, the derivatives of the loss by the outputs."""
    weight: str = ""
    """The weight's name in the layer; none if it is not trained."""
    bias: str = ""
    """The bias's name, likewise. A bias is the weight of a constant input 1."""
    rows: Rows = ...
    """Those of the parameters that are used here."""

    @abstractmethod
    def norms(self) -> list[Tensor]:
        """Return the norms of the samples' gradients, in one part or two: (N,)."""

    @abstractmethod
    def difference(self, grads: Mapping[str, Tensor]) -> Tensor:
        """Return what the samples' gradients add up to, less that of the parameters.

        Both are multiplied by a fixed random direction v, and 1 for the bias, which is
        much cheaper: sum_il d_il (x_il . v + 1) - (grad W v + grad b).

        Args:
            grads: The gradients of the layer's parameters by their names.
        """

    def _along(self, v: Tensor, grads: Mapping[str, Tensor]) -> Tensor:
        """Return grad W v + grad b."""
        along = v.new_zeros(1)
        if self.weight in grads:
            along = along + widen(grads[self.weight][self.rows]).reshape(-1, len(v)) @ v
        if self.bias in grads:
            along = along + widen(grads[self.bias][self.rows]).flatten()
        return along


@dataclasses.dataclass(slots=True, kw_only=True)
class Products(Part):
    """y_l = W x_l + b at the places l of a sample; its gradient is sum_l d_l x_l^T.

    Its square is |sum_l d_l x_l^T|^2, or sum_lm (x_l . x_m) (d_l . d_m), whichever is
    cheaper. For a single place it is |x|^2 |d|^2.

    >>> x, d = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[1.0], [2.0]])
    >>> Products(inputs=x, delta=d, weight="weight").norms()
    [tensor([5., 4.])]

    The shapes are (B, K, L) and (B, O, L), a column for each place, or (N, K) and
    (N, O). Groups of channels have parts of the gradient of their own: B = N * groups.
    """

    groups: int = 1

    def norms(self) -> list[Tensor]:
        if self.inputs.dim() == 2:
            of_bias = torch.linalg.vector_norm(self.delta, dim=1)
            if not self.weight:
                return [of_bias]
            of_weight = torch.linalg.vector_norm(self.inputs, dim=1).mul_(of_bias)
            return [of_weight, of_bias] if self.bias else [of_weight]
        with torch.autocast(self.inputs.device.type, enabled=False):
            return [self._norms_over_places()]

    def _norms_over_places(self) -> Tensor:
        """Return the norms where the gradient of a sample is a sum over places."""
        x, d = self.inputs, self.delta
        weight, bias = bool(self.weight), bool(self.bias)
        num_inputs, num_outputs, num_places = x.shape[1], d.shape[1], x.shape[2]
        if num_places * (num_inputs + num_outputs) < num_inputs * num_outputs:
            similar = torch.bmm(x.mT, x) * int(weight) + int(bias)
            # Rounding can make the square of a norm near 0 negative.
            squares = (similar * torch.bmm(d.mT, d)).sum(dim=(1, 2)).clamp(min=0)
        else:
            squares = d.sum(dim=2).square().sum(dim=1) * int(bias)
            if weight:
                squares += torch.bmm(d, x.mT).square().sum(dim=(1, 2))
        return squares.view(-1, self.groups).sum(dim=1).sqrt()

    def difference(self, grads: Mapping[str, Tensor]) -> Tensor:
        x, d = self.inputs, self.delta
        if x.dim() == 2:
            x, d = x.unsqueeze(2), d.unsqueeze(2)
        v = _direction(x.shape[1], x)
        along = v @ x * bool(self.weight) + bool(self.bias)
        num_samples = len(x) // self.groups
        total = torch.bmm(d, along.unsqueeze(2)).view(num_samples, -1).sum(dim=0)
        return total - self._along(v, grads)


@dataclasses.dataclass(slots=True, kw_only=True)
class Scales(Part):
    """y_lk = w_k x_lk + b_k; a sample's gradient is sum_l x_lk d_lk.

    The shapes are (N, L, K), or (N, K, L) where `places` is 2.

    >>> x, d = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[1.0, 2.0]]])
    >>> Scales(inputs=x, delta=d, weight="weight", bias="bias").norms()
    [tensor([8.5440]), tensor([2.2361])]
    """

    places: int = 1
    """The dimension of the places, 1 or 2."""

    def norms(self) -> list[Tensor]:
        used = [(self.weight, self.inputs), (self.bias, None)]
        return [
            torch.linalg.vector_norm(self._sums(x), dim=1) for name, x in used if name
        ]

    def _sums(self, factor: Tensor | None) -> Tensor:
        """Return the derivatives, times a factor, summed over the places: (N, K)."""
        d = self.delta if factor is None else self.delta * factor
        return d.sum(dim=self.places)

    def difference(self, grads: Mapping[str, Tensor]) -> Tensor:
        v = _direction(1, self.inputs)
        along = v * self.inputs * bool(self.weight)
        total = self._sums(along + bool(self.bias)).sum(dim=0)
        return total - self._along(v, grads)


@dataclasses.dataclass(slots=True, kw_only=True)
class Lookups(Part):
    """y_l is row t_l of a table; row t of a sample's gradient is sum_{l: t_l = t} d_l.

    The shapes are (N, L) and (N, L, E).

    >>> tokens, d = torch.tensor([[5, 5, 2]]), torch.tensor([[[1.0], [2.0], [4.0]]])
    >>> Lookups(inputs=tokens, delta=d, weight="weight", num_rows=6).norms()
    [tensor([5.])]
    """

    num_rows: int

    def norms(self) -> list[Tensor]:
        num_samples = len(self.inputs)
        first = torch.arange(num_samples, device=self.inputs.device) * self.num_rows
        # Each sample has a table of its own, of which only what it uses is built.
        used, at = (self.inputs + first[:, None]).unique(return_inverse=True)
        sums = self.delta.new_zeros(len(used), self.delta.shape[2])
        sums.index_add_(0, at.flatten(), self.delta.flatten(0, 1))
        squares = self.delta.new_zeros(num_samples)
        squares.index_add_(0, used // self.num_rows, sums.square().sum(dim=1))
        return [squares.sqrt()]

    def difference(self, grads: Mapping[str, Tensor]) -> Tensor:
        v = _direction(self.num_rows, self.delta)
        total = v[self.inputs].flatten() @ self.delta.flatten(0, 1)
        return total - self._along(v, {name: grad.mT for name, grad in grads.items()})


def sample_norms(parts: Sequence[Part]) -> list[Tensor]:
    """Return the norms of a layer's per-sample gradients, in one part or more: (N,)."""
    return [norm for part in parts for norm in part.norms()]


def check_sum(
    parts: Sequence[Part], grads: Mapping[str, Tensor], tolerance: Tensor
) -> None:
    """Make sure that the samples' gradients add up to those of the parameters.

    Args:
        parts: The parts of the layer.
        grads: The gradients of its trainable parameters by their names.
        tolerance: The largest difference that rounding may explain.

    Raises:
        Withheld: They do not.
    """
    for part in parts:
        if not part.difference(grads).abs().max() <= tolerance:
            raise Withheld(
                "its gradient is not finite, or not the sum over the samples of what "
                "came back to it: a parameter is used elsewhere too, the loss has a "
                "penalty, or a hook changes the gradient"
            )


def as_rounded(inputs: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in float32 at least, for sums, the inputs as the layer saw them.

    It has rounded them itself to autocast's dtype, that of its outputs.
    """
    if inputs.dtype == delta.dtype == torch.float32:
        return inputs, delta
    return widen(inputs.to(delta.dtype)), widen(delta)


def widen(tensor: Tensor) -> Tensor:
    """Return the tensor in float32 at least, for sums."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _direction(num_entries: int, like: Tensor) -> Tensor:
    """Return the fixed random direction v of the check."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_entries, generator=generator).to(like)
