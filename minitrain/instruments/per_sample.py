"""The lengths of the gradients of single samples, from an ordinary backward pass."""

import math
import time
from collections.abc import Collection
from functools import partial
from itertools import chain
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle


class PerSampleNorms:
    """The squared lengths |grad l_i|^2 of the gradients of single samples.

    The backward pass computes for each layer the derivatives of the loss by its
    outputs, sample by sample, and adds up their products with its inputs to the
    gradient. The lengths of the addends follow from the same two tensors, at the cost
    of a fraction of a pass. Gradients and everything else stay as they are without.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> inputs = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    >>> with PerSampleNorms(model).watch() as norms:
    ...     model(inputs).mean().backward()
    >>> norms.squared(num_samples=2)
    tensor([25.,  4.])

    What is differentiated while it watches, in one backward pass or in several, must in
    total be the mean (1/n) sum_i l_i over all n samples, where l_i depends on nothing
    but the i-th entry of the first dimension. BatchNorm, which breaks that, is
    recognised; other code that mixes samples is not.

    Known are trainable parameters of `nn.Linear` and `nn.Conv2d`; for models with
    others the norms are withheld and `withheld` says why.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._survey()

    def _survey(self) -> None:
        """Find the layers, and note what they were found by."""
        self.withheld: str | None = None
        """Why there are no norms."""
        self._layers: list[_Layer] = []
        try:
            self._layers = _layers(self._model)
        except _Withheld as reason:
            self.withheld = str(reason)
        modules = self._model.modules()
        self._batch_norms = [m for m in modules if isinstance(m, _BatchNorm)]
        self._parameters = [*self._model.parameters()]
        self._surveyed = self._modes()

    def _modes(self) -> list[bool]:
        """What trains, and how: a layer may be thawed, or BatchNorm switched."""
        modes = [parameter.requires_grad for parameter in self._parameters]
        return modes + [module.training for module in self._batch_norms]

    def watch(self, *, check: bool = True) -> Self:
        """Watch the passes of one step, until `close` or the end of a `with` block.

        Earlier steps are forgotten.

        check   whether to make sure that the addends add up to the gradient: they do
                not where a parameter is used outside of its layer, or the loss has a
                term, such as a penalty, that belongs to no sample. For a loop that does
                the same in every step, once is enough.
        """
        if self._modes() != self._surveyed:
            self._survey()
        for layer in self._layers:
            layer.watch(check)
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the hooks, and check what they have kept for it."""
        for layer in self._layers:
            layer.close()

    @property
    def seconds(self) -> float:
        """What the hooks took of the passes' time."""
        return sum(layer.seconds for layer in self._layers)

    def squared(self, num_samples: int) -> Tensor | None:
        """|grad l_i|^2 of all n samples in the order they came in, shape (n,).

        float32, or float64 where the model is. None where `withheld` says why, also
        where it turns out only now that the norms would be wrong.
        """
        if self._is_withheld(num_samples):
            return None
        # Each derivative was that of l_i / n. A layer has one length a sample, or two.
        parts = [zip(*layer.lengths, strict=True) for layer in self._layers]
        lengths = torch.cat([torch.cat(part) for part in chain(*parts)])
        return lengths.view(-1, num_samples).square().sum(dim=0) * num_samples**2

    def mean_square(self, num_samples: int) -> float | None:
        """s = mean_i |grad l_i|^2, or None as in `squared`."""
        if self._is_withheld(num_samples):
            return None
        parts = chain(*(layer.lengths for layer in self._layers))
        return num_samples * sum([float(x.dot(x)) for x in chain(*parts)])

    def _is_withheld(self, num_samples: int) -> bool:
        """Whether there are no norms; notes why, where it turns out only now."""
        for layer in self._layers:
            obstacle = layer.obstacle_to(num_samples)
            if obstacle is not None and self.withheld is None:
                self.withheld = f"{layer.name or 'the model'}: {obstacle}"
        return self.withheld is not None


class _Withheld(Exception):
    """The reason why there are no norms."""


class _Layer:
    """One layer's share of the norms.

    Its hooks keep the inputs of a call until the derivatives of the loss by its outputs
    come back, and measure both while they are in the caches. The check needs the
    gradients of the parameters too, which come later. They hold on to one pass at most.
    """

    def __init__(self, name: str, module: nn.Linear | nn.Conv2d) -> None:
        self.name = name
        self._module = module
        self._trainable = _trainable(module)
        self._handles: list[RemovableHandle] = []
        self._check = False
        self._forget()

    def _forget(self) -> None:
        self.lengths: list[list[Tensor]] = []
        """Of each pass, as `_lengths` gives them."""
        self._num_samples = 0
        self._step = object()
        self.seconds = 0.0
        self._obstacle: str | None = None
        self._inputs: Tensor | None = None
        self._version = 0
        self._delta: Tensor | None = None
        self._grads: list[Tensor] = []

    def watch(self, check: bool) -> None:
        """Forget earlier passes, and set the hooks."""
        self._forget()
        self._check = check
        # What register_forward_hook does, without its handle: the cost is half of it.
        hooks: Any = self._module._forward_hooks
        hooks[id(self)] = self._on_call
        hooks.move_to_end(id(self), last=False)
        self._module._forward_hooks_with_kwargs[id(self)] = True
        if check:
            for parameter in self._trainable.values():
                self._handles.append(parameter.register_hook(self._grads.append))

    def close(self) -> None:
        """Remove the hooks, and take in what the check has waited for."""
        self._module._forward_hooks.pop(id(self), None)
        self._module._forward_hooks_with_kwargs.pop(id(self), None)
        while self._handles:
            self._handles.pop().remove()
        if self._check:
            for parameter in self._trainable.values():
                if not parameter._backward_hooks:
                    # Every backward pass would call torch's hook for an empty dict.
                    parameter._backward_hooks = None
            self.take_in()

    def _on_call(
        self, _: nn.Module, args: Any, kwargs: dict[str, Any], output: Tensor
    ) -> None:
        if not output.requires_grad:
            return
        if self._delta is not None:
            self.take_in()
        elif self._inputs is not None:
            self._stop(_Withheld("it was called more than once in a pass"))
        try:
            inputs = args[0] if args else kwargs["input"]
            self._inputs, self._version = inputs, inputs._version
            node: Any = output.grad_fn
            node.register_prehook(partial(self._on_gradient, self._step))
        except Exception as error:
            self._stop(error)

    def _on_gradient(self, step: object, grads: tuple[Tensor, ...]) -> None:
        if step is not self._step:
            return  # a late gradient of an earlier step
        start = time.perf_counter()
        if self._inputs is None or self._delta is not None:
            self._stop(_Withheld("more than one gradient came back to it"))
        self._delta = grads[0]
        if not self._check:
            self.take_in()
        self.seconds += time.perf_counter() - start

    def take_in(self) -> None:
        """Turn what is kept of a pass into lengths."""
        if torch.is_grad_enabled():  # in a backward pass, too, with create_graph=True
            with torch.no_grad():
                return self.take_in()

        inputs, delta = self._inputs, self._delta
        if inputs is None or delta is None:
            return
        self._inputs = self._delta = None
        try:
            if inputs._version != self._version:
                raise _Withheld("its input was changed in place")
            x, d = inputs, delta
            if not x.dtype == d.dtype == torch.float32:
                # The layer itself has rounded its inputs to autocast's dtype.
                x, d = _wide(x.to(d.dtype)), _wide(d)
            lengths = _lengths(self._module, x, d, self._trainable)
            if self._check:
                # Half of the digits: more are lost only where the addends cancel.
                tolerance = math.sqrt(torch.finfo(delta.dtype).eps)
                tolerance *= torch.stack(lengths).sum()
                with torch.autocast(x.device.type, enabled=False):
                    _check_sum(
                        self._module, x, d, self._trainable, self._grads, tolerance
                    )
            self.lengths.append(lengths)
            self._num_samples += len(delta)
        except Exception as error:  # watching must not end a training
            self._stop(error)
        self._grads.clear()

    def _stop(self, reason: Exception) -> None:
        if self._obstacle is None:
            known = isinstance(reason, _Withheld)
            kind = "" if known else f"{type(reason).__name__}: "
            self._obstacle = f"{kind}{reason}"

    def obstacle_to(self, num_samples: int) -> str | None:
        """Why there are no norms of this layer for as many samples, or None."""
        if self._obstacle is not None:
            return self._obstacle
        if self._inputs is not None:
            return "it was called, but no gradient came back to it"
        if not self.lengths:
            return "it was not called"
        if self._num_samples != num_samples:
            return (
                f"its inputs have {self._num_samples} entries for {num_samples} samples"
            )
        return None


def _layers(model: nn.Module) -> list[_Layer]:
    """The layers with trainable parameters; raises _Withheld where one is unknown."""
    layers: list[_Layer] = []
    owners: dict[nn.Parameter, str] = {}
    for prefix, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, _BatchNorm) and (
            module.training or module.running_mean is None
        ):
            raise _Withheld(f"{prefix or 'the model'}: {kind} mixes the samples")
        trainable = _trainable(module)
        for attribute, parameter in trainable.items():
            name = f"{prefix}.{attribute}" if prefix else attribute
            # Subclasses may compute anything.
            known = type(module) in (nn.Linear, nn.Conv2d)
            if not known or attribute not in ("weight", "bias"):
                raise _Withheld(
                    f"{name}: known are the norms for weight and bias of Linear and "
                    f"Conv2d, not for those of {kind}"
                )
            if not parameter.is_floating_point():
                raise _Withheld(f"{name}: {parameter.dtype} is not real")
            if parameter.device != next(iter(owners), parameter).device:
                raise _Withheld(f"{name}: the model lies on more than one device")
            if parameter in owners:
                raise _Withheld(f"{name}: it is {owners[parameter]} too")
            owners[parameter] = name
        if trainable:
            assert isinstance(module, nn.Linear | nn.Conv2d)
            layers.append(_Layer(prefix, module))
    if not layers:
        raise _Withheld("the model has no trainable parameter")
    return layers


def _trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The module's own trainable parameters."""
    return {
        attribute: parameter
        for attribute, parameter in module._parameters.items()
        if parameter is not None and parameter.requires_grad
    }


def _lengths(
    module: nn.Linear | nn.Conv2d,
    inputs: Tensor,
    delta: Tensor,
    trainable: Collection[str],
) -> list[Tensor]:
    """The lengths of a layer's per-sample gradients, in one part or two: (N,) each.

    With the inputs x_l and the derivatives d_l at the places l of a sample, the square
    is |sum_l d_l x_l^T|^2, or sum_lm (x_l . x_m) (d_l . d_m), whichever is cheaper: for
    a single place, |x|^2 |d|^2. A bias is the weight of a constant input 1.

    Source: Goodfellow, Efficient per-example gradient computations, 2015; for more
    places Li et al., Large language models can be strong differentially private
    learners, 2021.
    """
    weight, bias = "weight" in trainable, "bias" in trainable
    if inputs.dim() == 2:
        of_bias = torch.linalg.vector_norm(delta, dim=1)
        if not weight:
            return [of_bias]
        of_weight = torch.linalg.vector_norm(inputs, dim=1).mul_(of_bias)
        return [of_weight, of_bias] if bias else [of_weight]
    with torch.autocast(inputs.device.type, enabled=False):
        return [_lengths_of_places(module, inputs, delta, weight, bias)]


def _lengths_of_places(
    module: nn.Linear | nn.Conv2d,
    inputs: Tensor,
    delta: Tensor,
    weight: bool,
    bias: bool,
) -> Tensor:
    """The lengths where the gradient of a sample is a sum over places."""
    x, d = _columns(module, inputs, delta)
    num_inputs, num_outputs, num_places = x.shape[1], d.shape[1], x.shape[2]
    if num_places * (num_inputs + num_outputs) < num_inputs * num_outputs:
        similar = torch.bmm(x.mT, x) * int(weight) + int(bias)
        # Rounding can make the square of a length near 0 negative.
        squares = (similar * torch.bmm(d.mT, d)).sum(dim=(1, 2)).clamp(min=0)
    else:
        squares = d.sum(dim=2).square().sum(dim=1) * int(bias)
        if weight:
            squares += torch.bmm(d, x.mT).square().sum(dim=(1, 2))
    # Groups of channels have parts of the gradient of their own.
    return squares.view(len(delta), -1).sum(dim=1).sqrt()


def _check_sum(
    module: nn.Linear | nn.Conv2d,
    inputs: Tensor,
    delta: Tensor,
    trainable: Collection[str],
    grads: list[Tensor],
    tolerance: Tensor,
) -> None:
    """Raise _Withheld where the samples' gradients do not add up to `grads`.

    Both are multiplied by a fixed random direction v, and 1 for the bias, which is much
    cheaper: sum_il d_il (x_il . v + 1) = grad W v + grad b.
    """
    x, d = _columns(module, inputs, delta)
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(x.shape[1], generator=generator).to(x)
    along = v @ x * int("weight" in trainable) + int("bias" in trainable)
    difference = torch.bmm(d, along.unsqueeze(2)).view(len(delta), -1).sum(dim=0)
    for grad in grads:
        difference -= _wide(grad).flatten(1) @ v if grad.dim() > 1 else _wide(grad)
    if not difference.abs().max() <= tolerance:
        raise _Withheld(
            "its gradient is not finite, or not the sum over the samples of what came "
            "back to it: a parameter is used elsewhere too, the loss has a penalty, or "
            "a hook changes the gradient"
        )


def _columns(
    module: nn.Linear | nn.Conv2d, inputs: Tensor, delta: Tensor
) -> tuple[Tensor, Tensor]:
    """Inputs and derivatives, a column for each place: (B, K, L) and (B, O, L).

    Of a convolution a column of inputs is the patch that a position sees. Each group of
    its channels counts as a sample of its own: B is then N * groups.
    """
    num = len(inputs)
    if isinstance(module, nn.Linear):
        if inputs.dim() < 2:
            raise _Withheld("its input has no dimension for the samples")
        x = inputs.reshape(num, -1, module.in_features)
        return x.mT, delta.reshape(num, -1, module.out_features).mT
    if inputs.dim() < 4:
        raise _Withheld("its input has no dimension for the samples")
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(inputs, module._reversed_padding_repeated_twice, mode)
    for axis, size, stride, gap in zip(
        (2, 3), module.kernel_size, module.stride, module.dilation, strict=True
    ):
        x = x.unfold(axis, gap * (size - 1) + 1, stride)[..., ::gap]
    x = x.permute(0, 1, 4, 5, 2, 3)  # (N, channels, *kernel, *positions)
    num, num_places = num * module.groups, delta.shape[2] * delta.shape[3]
    return x.reshape(num, -1, num_places), delta.reshape(num, -1, num_places)


def _wide(tensor: Tensor) -> Tensor:
    """In float32 at least, for sums."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
