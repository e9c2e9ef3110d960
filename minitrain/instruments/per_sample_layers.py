"""The layers whose samples' gradients have known norms, and what they do.

`LAYERS` is the table: a new layer is a new row of it.
"""

import dataclasses
import math
from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from minitrain.instruments.per_sample import (
    NO_SAMPLES,
    Lookups,
    Part,
    Products,
    Scales,
    Withheld,
    as_rounded,
)
from minitrain.instruments.per_sample_attention import (
    PARAMETERS,
    AttentionInputs,
    draws_masks,
    find_attention_parts,
    refuse_attention,
)
from minitrain.randomness import RandomStates

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

Names = dict[str, Any]
"""The names of the layer's trained parameters, each by itself, as a part takes them."""


def single_input(*args: Any, **kwargs: Any) -> tuple[Tensor]:
    """Return the one argument of a call, whatever it is called."""
    return (args[0] if args else next(iter(kwargs.values())),)


def versions_of(inputs: tuple[Any, ...]) -> list[int]:
    """Return how often each tensor was changed in place.

    Autograd compares the numbers in the same way; they have no public name.
    """
    return [x._version for x in inputs if isinstance(x, Tensor)]


@dataclasses.dataclass(frozen=True)
class LayerRule:
    """How the parts of a layer's gradient follow from one of its calls."""

    find_parts: Callable[[Any, Any, Tensor, Names], list[Part]]
    """Takes the layer, what `inputs_of` returned, the derivatives of the loss by the
    outputs, and the names of what is trained; raises `Withheld`."""
    inputs_of: Callable[..., tuple[Any, ...]] = single_input
    """Takes the arguments of the call, and returns what has to be kept of them."""
    refuse: Callable[[Any], str | None] = lambda layer: None
    """Returns the reason why there are no norms for this layer, if there is one."""
    parameters: Collection[str] = ("weight", "bias")
    """The names of what may be trained; those with a dot belong to a child, which is
    never called."""
    draws: Callable[[Any], bool] = lambda layer: False
    """Returns whether finding the parts draws the call's random numbers again."""

    def find_parts_of(
        self, layer: Any, inputs: Any, delta: Any, names: Names, random: Any
    ) -> list[Part]:
        """Find the parts, with the random numbers that followed on a state, if any."""
        if random is None:
            return self.find_parts(layer, inputs, delta, names)
        with RandomStates(delta.device).replay(random):
            return self.find_parts(layer, inputs, delta, names)


def _find_linear_parts(
    layer: nn.Linear, inputs: tuple[Tensor], delta: Tensor, names: Names
) -> list[Part]:
    x, d = as_rounded(*inputs, delta)
    if x.dim() < 2:
        raise Withheld(NO_SAMPLES)
    if x.dim() > 2:
        x = x.reshape(len(x), -1, layer.in_features).mT
        d = d.reshape(len(d), -1, layer.out_features).mT
    return [Products(inputs=x, delta=d, **names)]


def _find_convolution_parts(
    layer: nn.Conv1d | nn.Conv2d | nn.Conv3d,
    inputs: tuple[Tensor],
    delta: Tensor,
    names: Names,
) -> list[Part]:
    """A column of inputs is the patch that a position sees."""
    x, d = as_rounded(*inputs, delta)
    num_axes = len(layer.kernel_size)
    if x.dim() < 2 + num_axes:
        raise Withheld(NO_SAMPLES)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    # What the layer itself gives to F.pad: the one place with the numbers of "same".
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode)
    axes, kernel_axes = range(2, 2 + num_axes), range(2 + num_axes, 2 + 2 * num_axes)
    for axis, size, stride, gap in zip(
        axes, layer.kernel_size, layer.stride, layer.dilation, strict=True
    ):
        x = x.unfold(axis, gap * (size - 1) + 1, stride)[..., ::gap]
    x = x.permute(0, 1, *kernel_axes, *axes)  # (N, channels, *kernel, *positions)
    num, num_places = len(d) * layer.groups, d[0, 0].numel()
    x, d = x.reshape(num, -1, num_places), d.reshape(num, -1, num_places)
    return [Products(inputs=x, delta=d, groups=layer.groups, **names)]


def _find_embedding_parts(
    layer: nn.Embedding,
    inputs: tuple[Tensor],
    delta: Tensor,
    names: Names,
) -> list[Part]:
    (tokens,) = inputs
    if tokens.dim() < 2:
        raise Withheld(
            "its indices have no dimension for the samples: give it those of each "
            "sample, (N, L), also where they are the same, such as positions"
        )
    if layer.padding_idx is not None:
        delta = delta.masked_fill((tokens == layer.padding_idx).unsqueeze(-1), 0)
    tokens, d = tokens.flatten(1), as_rounded(delta, delta)[1]
    d = d.reshape(*tokens.shape, layer.embedding_dim)
    rows = layer.num_embeddings
    return [Lookups(inputs=tokens, delta=d, num_rows=rows, **names)]


def _refuse_embedding(layer: nn.Embedding) -> str | None:
    if layer.sparse:
        return "its gradient is sparse: set sparse=False"
    if layer.scale_grad_by_freq:
        return "scale_grad_by_freq mixes the samples: set scale_grad_by_freq=False"
    if layer.max_norm is not None:
        return "max_norm changes its weight in the forward pass: set max_norm=None"
    return None


def _find_layer_norm_parts(
    layer: nn.LayerNorm,
    inputs: tuple[Tensor],
    delta: Tensor,
    names: Names,
) -> list[Part]:
    x, d = as_rounded(*inputs, delta)
    shape = [*layer.normalized_shape]
    if x.dim() <= len(shape):
        raise Withheld(NO_SAMPLES)
    x, by_place = F.layer_norm(x, shape, eps=layer.eps), (len(x), -1, math.prod(shape))
    x, d = x.reshape(by_place), d.reshape(by_place)
    return [Scales(inputs=x, delta=d, places=1, **names)]


def _find_group_norm_parts(
    layer: nn.GroupNorm,
    inputs: tuple[Tensor],
    delta: Tensor,
    names: Names,
) -> list[Part]:
    x, d = as_rounded(*inputs, delta)
    x = F.group_norm(x, layer.num_groups, eps=layer.eps)
    by_channel = *x.shape[:2], -1
    x, d = x.reshape(by_channel), d.reshape(by_channel)
    return [Scales(inputs=x, delta=d, places=2, **names)]


LAYERS: dict[type[nn.Module], LayerRule] = {
    nn.Linear: LayerRule(_find_linear_parts),
    nn.Conv1d: LayerRule(_find_convolution_parts),
    nn.Conv2d: LayerRule(_find_convolution_parts),
    nn.Conv3d: LayerRule(_find_convolution_parts),
    nn.Embedding: LayerRule(_find_embedding_parts, refuse=_refuse_embedding),
    nn.LayerNorm: LayerRule(_find_layer_norm_parts),
    nn.GroupNorm: LayerRule(_find_group_norm_parts),
    nn.MultiheadAttention: LayerRule(
        find_attention_parts,
        inputs_of=AttentionInputs,
        refuse=refuse_attention,
        parameters=PARAMETERS,
        draws=draws_masks,
    ),
}
"""By the exact type: subclasses may compute anything."""


def find_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers with trainable parameters, by their names.

    Raises:
        Withheld: The norms of one of them are not known, or samples are mixed.
    """
    layers: dict[str, nn.Module] = {}
    owners: dict[nn.Parameter, str] = {}
    covered: set[nn.Module] = set()
    for prefix, module in model.named_modules():
        if module in covered:
            continue
        kind = type(module).__name__
        if isinstance(module, BATCH_NORMS) and (
            module.training or module.running_mean is None
        ):
            raise Withheld(f"{prefix or 'the model'}: {kind} mixes the samples")
        if not (trainable := trainable_parameters(module)):
            continue
        for attribute, parameter in trainable.items():
            name = f"{prefix}.{attribute}" if prefix else attribute
            if obstacle := _obstacle_to(module, attribute):
                raise Withheld(f"{name}: {obstacle}")
            if not parameter.is_floating_point():
                raise Withheld(f"{name}: {parameter.dtype} is not real")
            if parameter.device != next(iter(owners), parameter).device:
                raise Withheld(f"{name}: the model lies on more than one device")
            if parameter in owners:
                raise Withheld(f"{name}: it is {owners[parameter]} too")
            owners[parameter] = name
        if reason := LAYERS[type(module)].refuse(module):
            raise Withheld(f"{prefix or 'the model'}: {reason}")
        layers[prefix] = module
        covered.update(module.children())
    if not layers:
        raise Withheld("the model has no trainable parameter")
    return layers


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters that a layer uses itself, by their names in it.

    Those of its children are among them if it is known not to call the children.
    """
    rule = LAYERS.get(type(module))
    uses_children = rule is not None and any("." in name for name in rule.parameters)
    own = module.named_parameters(recurse=uses_children, remove_duplicate=False)
    return {attribute: p for attribute, p in own if p.requires_grad}


def _obstacle_to(module: nn.Module, attribute: str) -> str | None:
    """Return why there are no norms for a parameter of a module, or None."""
    rule = LAYERS.get(type(module))
    if rule is not None and attribute in rule.parameters:
        return None
    kind = type(module).__name__
    if isinstance(module, nn.RNNBase):
        return (
            f"{kind} adds up a gradient over the steps of a sequence, and the "
            "derivatives at the single steps never leave it"
        )
    *first, last = (layer.__name__ for layer in LAYERS)
    return (
        f"known are the norms for the parameters of {', '.join(first)} and {last}, not "
        f"for those of {kind}; what is learned for each position may stand in an "
        "Embedding, called with indices of shape (N, L)"
    )
