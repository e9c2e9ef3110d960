"""The norms of single samples' gradients, from the tensors of a backward pass.

The backward pass computes for each layer the derivatives of the loss by its outputs,
sample by sample, and adds up their products with its inputs to the gradient. The norms
of the addends follow from the same two tensors, at the cost of a fraction of a pass.

Source: Goodfellow, Efficient per-example gradient computations, 2015; for more places
Li et al., Large language models can be strong differentially private learners, 2021.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Layer = nn.Linear | nn.Conv2d
"""What the norms are known for."""

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Withheld(Exception):
    """The reason why there are no norms."""


def find_layers(model: nn.Module) -> dict[str, Layer]:
    """Return the layers with trainable parameters, by their names.

    Raises:
        Withheld: The norms of one of them are not known, or samples are mixed.
    """
    layers: dict[str, Layer] = {}
    owners: dict[nn.Parameter, str] = {}
    for prefix, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, BATCH_NORMS) and (
            module.training or module.running_mean is None
        ):
            raise Withheld(f"{prefix or 'the model'}: {kind} mixes the samples")
        trainable = trainable_parameters(module)
        for attribute, parameter in trainable.items():
            name = f"{prefix}.{attribute}" if prefix else attribute
            # Subclasses may compute anything.
            known = type(module) in (nn.Linear, nn.Conv2d)
            if not known or attribute not in ("weight", "bias"):
                raise Withheld(
                    f"{name}: known are the norms for weight and bias of Linear and "
                    f"Conv2d, not for those of {kind}"
                )
            if not parameter.is_floating_point():
                raise Withheld(f"{name}: {parameter.dtype} is not real")
            if parameter.device != next(iter(owners), parameter).device:
                raise Withheld(f"{name}: the model lies on more than one device")
            if parameter in owners:
                raise Withheld(f"{name}: it is {owners[parameter]} too")
            owners[parameter] = name
        if trainable:
            assert isinstance(module, Layer)
            layers[prefix] = module
    if not layers:
        raise Withheld("the model has no trainable parameter")
    return layers


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the module's own trainable parameters, by their attributes."""
    own = module.named_parameters(recurse=False, remove_duplicate=False)
    return {attribute: p for attribute, p in own if p.requires_grad}


def sample_norms(
    module: Layer, inputs: Tensor, delta: Tensor, trainable: Collection[str]
) -> list[Tensor]:
    """Return the norms of a layer's per-sample gradients, in one part or two: (N,).

    With the inputs x_l and the derivatives d_l at the places l of a sample, the square
    is |sum_l d_l x_l^T|^2, or sum_lm (x_l . x_m) (d_l . d_m), whichever is cheaper: for
    a single place, |x|^2 |d|^2. A bias is the weight of a constant input 1.

    >>> x, d = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[1.0], [2.0]])
    >>> sample_norms(nn.Linear(2, 1), x, d, ["weight"])
    [tensor([5., 4.])]

    Args:
        module: The layer.
        inputs: Its inputs, the samples in the first dimension.
        delta: The derivatives of the loss by its outputs.
        trainable: Those of `weight` and `bias` that are trained.

    Raises:
        Withheld: The inputs have no dimension for the samples.
    """
    weight, bias = "weight" in trainable, "bias" in trainable
    if inputs.dim() == 2:
        of_bias = torch.linalg.vector_norm(delta, dim=1)
        if not weight:
            return [of_bias]
        of_weight = torch.linalg.vector_norm(inputs, dim=1).mul_(of_bias)
        return [of_weight, of_bias] if bias else [of_weight]
    with torch.autocast(inputs.device.type, enabled=False):
        return [_norms_over_places(module, inputs, delta, weight, bias)]


def _norms_over_places(
    module: Layer, inputs: Tensor, delta: Tensor, weight: bool, bias: bool
) -> Tensor:
    """Return the norms where the gradient of a sample is a sum over places."""
    x, d = _columns(module, inputs, delta)
    num_inputs, num_outputs, num_places = x.shape[1], d.shape[1], x.shape[2]
    if num_places * (num_inputs + num_outputs) < num_inputs * num_outputs:
        similar = torch.bmm(x.mT, x) * int(weight) + int(bias)
        # Rounding can make the square of a norm near 0 negative.
        squares = (similar * torch.bmm(d.mT, d)).sum(dim=(1, 2)).clamp(min=0)
    else:
        squares = d.sum(dim=2).square().sum(dim=1) * int(bias)
        if weight:
            squares += torch.bmm(d, x.mT).square().sum(dim=(1, 2))
    # Groups of channels have parts of the gradient of their own.
    return squares.view(len(delta), -1).sum(dim=1).sqrt()


def check_sum(
    module: Layer,
    inputs: Tensor,
    delta: Tensor,
    trainable: Collection[str],
    grads: Sequence[Tensor],
    tolerance: Tensor,
) -> None:
    """Make sure that the samples' gradients add up to those of the parameters.

    Both are multiplied by a fixed random direction v, and 1 for the bias, which is much
    cheaper: sum_il d_il (x_il . v + 1) = grad W v + grad b.

    Args:
        module: The layer.
        inputs: As for `sample_norms`.
        delta: As for `sample_norms`.
        trainable: As for `sample_norms`.
        grads: The gradients of the trainable parameters.
        tolerance: The largest difference that rounding may explain.

    Raises:
        Withheld: They do not.
    """
    x, d = _columns(module, inputs, delta)
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(x.shape[1], generator=generator).to(x)
    along = v @ x * int("weight" in trainable) + int("bias" in trainable)
    difference = torch.bmm(d, along.unsqueeze(2)).view(len(delta), -1).sum(dim=0)
    for grad in grads:
        difference -= widen(grad).flatten(1) @ v if grad.dim() > 1 else widen(grad)
    if not difference.abs().max() <= tolerance:
        raise Withheld(
            "its gradient is not finite, or not the sum over the samples of what came "
            "back to it: a parameter is used elsewhere too, the loss has a penalty, or "
            "a hook changes the gradient"
        )


def widen(tensor: Tensor) -> Tensor:
    """Return the tensor in float32 at least, for sums."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _columns(module: Layer, inputs: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Return inputs and derivatives, a column for each place: (B, K, L), (B, O, L).

    Of a convolution a column of inputs is the patch that a position sees. Each group of
    its channels counts as a sample of its own: B is then N * groups.
    """
    num = len(inputs)
    if isinstance(module, nn.Linear):
        if inputs.dim() < 2:
            raise Withheld("its input has no dimension for the samples")
        x = inputs.reshape(num, -1, module.in_features)
        return x.mT, delta.reshape(num, -1, module.out_features).mT
    if inputs.dim() < 4:
        raise Withheld("its input has no dimension for the samples")
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    # What Conv2d itself gives to F.pad: the one place with the numbers of "same".
    x = F.pad(inputs, module._reversed_padding_repeated_twice, mode)
    for axis, size, stride, gap in zip(
        (2, 3), module.kernel_size, module.stride, module.dilation, strict=True
    ):
        x = x.unfold(axis, gap * (size - 1) + 1, stride)[..., ::gap]
    x = x.permute(0, 1, 4, 5, 2, 3)  # (N, channels, *kernel, *positions)
    num, num_places = num * module.groups, delta.shape[2] * delta.shape[3]
    return x.reshape(num, -1, num_places), delta.reshape(num, -1, num_places)
