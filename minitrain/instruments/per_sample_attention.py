"""The parts of the gradient of `nn.MultiheadAttention`.

The layer projects its inputs, q = W_q x + b_q and so on, lets q attend to k and v, and
projects what comes out. No hook sees in between: the projections are functions, not
modules. So the attention alone is computed once more, and differentiated by q, k and v
in a backward pass of its own, which needs neither the derivatives by the weights nor
those by the inputs. With the norms this takes about as long as the layer's own passes.

Source: Vaswani et al., Attention is all you need, 2017.
"""

import functools
import math
from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minitrain.instruments.per_sample import (
    NO_SAMPLES,
    Part,
    Products,
    Rows,
    Scales,
    Withheld,
    as_rounded,
)

PARAMETERS = (
    *("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
    *("in_proj_bias", "bias_k", "bias_v", "out_proj.weight", "out_proj.bias"),
)


class AttentionInputs(NamedTuple):
    """The arguments of a call of the layer."""

    query: Tensor
    """(N, L, E)"""
    key: Tensor
    """(N, S, K)"""
    value: Tensor
    """(N, S, V)"""
    key_padding_mask: Tensor | None = None
    """(N, S), True where a key is left out, or what is added to the scores."""
    need_weights: bool = True
    attn_mask: Tensor | None = None
    """(L, S) or (N * heads, L, S), as `key_padding_mask`."""
    average_attn_weights: bool = True
    is_causal: bool = False


def refuse_attention(layer: nn.MultiheadAttention) -> str | None:
    """Return why there are no norms for this layer, or None."""
    if not layer.batch_first:
        return "its samples lie in the second dimension: set batch_first=True"
    return None


def draws_masks(layer: nn.MultiheadAttention) -> bool:
    """Return whether a call draws random numbers, for dropout."""
    return layer.training and layer.dropout > 0


def find_attention_parts(
    layer: nn.MultiheadAttention,
    inputs: AttentionInputs,
    delta: Tensor,
    names: Collection[str],
) -> list[Part]:
    """Return one part for each weight and bias of each projection.

    Where the layer has dropout, the generators must be where they were at the call.

    Raises:
        Withheld: The inputs have no dimension for the samples.
    """
    if inputs.query.dim() < 3:
        raise Withheld(NO_SAMPLES)
    # As in the call itself, be it within autocast or not.
    is_rounded = delta.dtype != layer.out_proj.weight.dtype
    dtype = delta.dtype if is_rounded else None
    with torch.autocast(delta.device.type, dtype, enabled=is_rounded):
        outputs, *by_projected = _differentiate(layer, inputs, delta)

    parts = _parts_of_map(outputs, delta, "out_proj.weight", "out_proj.bias")
    is_packed = layer.in_proj_weight is not None
    for i, (x, d) in enumerate(zip(inputs[:3], by_projected, strict=True)):
        weight = "in_proj_weight" if is_packed else f"{'qkv'[i]}_proj_weight"
        rows = slice(i * layer.embed_dim, (i + 1) * layer.embed_dim)
        of_weight = rows if is_packed else ...
        here, beyond = d.tensor_split([x.shape[1]], dim=1)
        parts += _parts_of_map(x, here, weight, "in_proj_bias", of_weight, rows)
        if i > 0:
            parts.append(_part_of_bias(beyond[:, :1], f"bias_{'qkv'[i]}"))
    return [part for part in parts if part.weight + part.bias in names]


def _parts_of_map(
    x: Tensor, d: Tensor, weight: str, bias: str, rows: Rows = ..., of_bias: Rows = ...
) -> list[Part]:
    """Return the parts of the map W x + b, where both may be rows of a larger one."""
    inputs, delta = as_rounded(x, d)
    return [
        Products(inputs=inputs.mT, delta=delta.mT, weight=weight, rows=rows),
        _part_of_bias(d, bias, of_bias),
    ]


def _part_of_bias(d: Tensor, bias: str, rows: Rows = ...) -> Part:
    _, delta = as_rounded(d, d)
    return Scales(inputs=delta, delta=delta, bias=bias, rows=rows)


def _differentiate(
    layer: nn.MultiheadAttention, inputs: AttentionInputs, delta: Tensor
) -> tuple[Tensor, ...]:
    """Return the outputs of the heads, and the derivatives by q, k and v.

    All are of shape (N, L or S, E); those by k and v have a place more for `bias_k` and
    `bias_v`, and one for the zeros of `add_zero_attn`.
    """
    with torch.no_grad():
        projected = _project(layer, inputs)
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in projected]
        outputs = _attend(layer, inputs, *leaves)
    by_outputs = delta @ layer.out_proj.weight.detach()
    by_projected = torch.autograd.grad(outputs, leaves, by_outputs.to(outputs.dtype))
    return outputs.detach(), *by_projected


def _project(layer: nn.MultiheadAttention, inputs: AttentionInputs) -> list[Tensor]:
    """Return q, and k and v with what the layer adds to them."""
    weights = [layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight]
    if layer.in_proj_weight is not None:
        weights = [*layer.in_proj_weight.detach().chunk(3)]
    biases: list[Tensor | None] = [None] * 3
    if layer.in_proj_bias is not None:
        biases = [*layer.in_proj_bias.detach().chunk(3)]
    q, k, v = map(F.linear, inputs[:3], [w.detach() for w in weights], biases)
    if layer.bias_k is not None and layer.bias_v is not None:
        k = torch.cat([k, layer.bias_k.detach().expand(len(k), 1, -1)], dim=1)
        v = torch.cat([v, layer.bias_v.detach().expand(len(v), 1, -1)], dim=1)
    if layer.add_zero_attn:
        k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
    return [q, k, v]


def _attend(
    layer: nn.MultiheadAttention,
    inputs: AttentionInputs,
    q: Tensor,
    k: Tensor,
    v: Tensor,
) -> Tensor:
    """Return softmax(q k^T / sqrt(D) + mask) v, head by head, side by side: (N, L, E).

    It takes the layer's own way, so that dropout draws the same numbers.
    """
    num_heads, needs_weights = layer.num_heads, inputs.need_weights
    q, k, v = (x.unflatten(2, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    dropout = layer.dropout if layer.training else 0.0
    is_causal = inputs.is_causal and inputs.key_padding_mask is None
    mask = None
    if needs_weights or not is_causal:
        mask, is_causal = _merge_masks(inputs, num_heads, k), False
    if needs_weights:
        scores = (q / math.sqrt(layer.head_dim)) @ k.mT
        scores = scores if mask is None else scores + mask
        heads = F.dropout(scores.softmax(dim=-1), dropout) @ v
    else:
        heads = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
    return heads.transpose(1, 2).flatten(2)


def _merge_masks(
    inputs: AttentionInputs, num_heads: int, keys: Tensor
) -> Tensor | None:
    """Return what both masks add to the scores, in a shape that fits (N, heads, L, S).

    Nothing masks the places that the layer adds to the keys.
    """
    masks: list[Tensor] = []
    if (mask := inputs.attn_mask) is not None:
        masks.append(mask.unflatten(0, (-1, num_heads)) if mask.dim() == 3 else mask)
    if (mask := inputs.key_padding_mask) is not None:
        masks.append(mask[:, None, None])
    if not masks:
        return None
    merged = functools.reduce(torch.add, [_added(mask, keys) for mask in masks])
    return F.pad(merged, (0, keys.shape[2] - merged.shape[-1]))


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """Return what a mask adds to the scores: -inf where a key is left out."""
    if mask.is_floating_point():
        return mask
    return like.new_zeros(mask.shape).masked_fill_(mask, -math.inf)
