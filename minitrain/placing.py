"""The move of a module's parameters into new memory: which, whether they can, and how.

Everything is checked before the first parameter moves, and the move is made of all or
of none: whatever is refused leaves the module as it was.
"""

import weakref
from collections.abc import Callable, Collection, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minitrain import _torch

Only = Callable[[str, nn.Parameter], bool] | Collection[str]
"""The choice of parameters: only(name, parameter), or their names."""

LIST = "give the optimizer a list: SGD(model.parameters())"


class Place(NamedTuple):
    """Where a parameter stands in a module."""

    name: str
    """The first one in `module.named_parameters()`."""
    owner: nn.Module
    attribute: str
    parameter: nn.Parameter


def find_places(module: nn.Module, only: Only | None = None) -> list[Place]:
    """Return the trainable parameters in the module's order, each once.

    Args:
        module: Any module.
        only: Which of them; all of them by default.

    Raises:
        TypeError: That is not a module.
        ValueError: There is none, `only` chooses none, or it names one that is not
            there.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"{type(module).__name__} is not a module: give ParameterVector the module "
            f"itself, or {LIST}"
        )
    places = _places_of(module)
    if not places:
        raise ValueError("the module has no trainable parameter to lay out")
    if only is None:
        return places
    names = [place.name for place in places]
    if not callable(only):
        for name in only:
            if name not in names:
                raise ValueError(f"only: there is no {name} in {', '.join(names)}")
    chosen = [
        place
        for place in places
        if (only(place.name, place.parameter) if callable(only) else place.name in only)
    ]
    if not chosen:
        raise ValueError(f"only chooses none of {', '.join(names)}")
    return chosen


def _places_of(module: nn.Module) -> list[Place]:
    places: dict[nn.Parameter, Place] = {}
    for prefix, owner in module.named_modules():
        for attribute, parameter in owner.named_parameters(recurse=False):
            if parameter.requires_grad:
                name = f"{prefix}.{attribute}" if prefix else attribute
                place = Place(name, owner, attribute, parameter)
                places.setdefault(parameter, place)
    return list(places.values())


def check_places(module: nn.Module, places: Sequence[Place]) -> None:
    """Make sure that the parameters can become parts of one vector, and nothing breaks.

    To be called where `_torch.released_rnns` has put the references of RNNs aside.

    Raises:
        TypeError: A parameter, named, is more than a plain `nn.Parameter`.
        ValueError: It has no values, it shares its memory, or they differ in dtype or
            device.
        RuntimeError: It is in use, by a loss that waits for its backward pass for one.
    """
    for name, _, _, parameter in places:
        _check_kind(name, parameter)
        if trouble := _trouble_with(parameter):
            raise ValueError(f"{name} {trouble}")
    _check_uniform(places)
    _check_apart(module, places)
    for name, _, _, parameter in places:
        if (count := _torch.use_count(parameter)) > 1:
            raise RuntimeError(
                f"{name} is in use (use_count {count}), by a loss or an output that "
                "could go backward, by the old weight_norm, by TorchScript or by "
                "DistributedDataParallel: make the vector before these hold it, or "
                f"{LIST}"
            )


def _check_kind(name: str, parameter: nn.Parameter) -> None:
    if nn.parameter.is_lazy(parameter):
        raise ValueError(f"{name} has no shape yet: run one batch first, or {LIST}")
    if type(parameter) is not nn.Parameter:
        raise TypeError(
            f"{name} is a {type(parameter).__name__}, and a vector holds plain "
            f"nn.Parameters alone: {LIST}"
        )


def _trouble_with(parameter: nn.Parameter) -> str:
    """Return why a parameter cannot move and what helps, or '': both after its name."""
    if parameter.layout != torch.strided:
        return f"has the layout {parameter.layout}, which no vector has: {LIST}"
    if parameter.is_meta:
        return "is on the meta device, without values: give it some first"
    if parameter.is_inference() or torch.is_inference_mode_enabled():
        return "meets torch.inference_mode(), which records no gradient: leave it first"
    if not parameter.is_leaf:
        return "is computed from other tensors: detach it first"
    if getattr(parameter, "grad_dtype", parameter.dtype) != parameter.dtype:
        return f"has gradients of another dtype, {parameter.grad_dtype}: {LIST}"
    if _overlaps_itself(parameter):
        return "overlaps itself in memory, so nothing can update it: clone it first"
    if parameter.device.type == "cpu" and parameter.is_shared():
        return f"lies in memory that other processes may share: {LIST}"
    if weakref.getweakrefs(parameter):
        return f"is held by a weak reference, which would not follow it: {LIST}"
    return ""


def _check_uniform(places: Sequence[Place]) -> None:
    first, reference = places[0].name, places[0].parameter
    for name, _, _, p in places[1:]:
        if (p.dtype, p.device) != (reference.dtype, reference.device):
            raise ValueError(
                f"{name} is {p.dtype} on {p.device}, {first} {reference.dtype} on "
                f"{reference.device}: one vector needs one dtype and one device; make "
                f"several of them by `only`, or {LIST}"
            )


class _Span(NamedTuple):
    """The memory of a tensor: from the first address to that past the last one."""

    device: str
    start: int
    end: int
    name: str
    moves: bool


def _check_apart(module: nn.Module, places: Sequence[Place]) -> None:
    """Make sure that no parameter to be moved shares memory with another tensor."""
    moving = {place.parameter for place in places}
    tensors = chain(module.named_buffers(), module.named_parameters())
    names = {tensor: name for name, tensor in tensors if _is_in_memory(tensor)}
    spans = sorted(_span(t, name, t in moving) for t, name in names.items())
    furthest = _Span("", 0, 0, "", False)
    for span in spans:
        is_apart = span.device != furthest.device or span.start >= furthest.end
        if not is_apart and (span.moves or furthest.moves):
            raise ValueError(
                f"{furthest.name} and {span.name} overlap in memory, and a vector "
                f"would part them: {LIST}"
            )
        if is_apart or span.end > furthest.end:
            furthest = span


def _is_in_memory(tensor: Tensor) -> bool:
    is_plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
    return is_plain and not tensor.is_meta and tensor.numel() > 0


def _span(tensor: Tensor, name: str, moves: bool) -> _Span:
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    reach = 1 + sum((size - 1) * stride for size, stride in pairs)
    start = tensor.data_ptr()
    end = start + reach * tensor.element_size()
    return _Span(str(tensor.device), start, end, name, moves)


def _overlaps_itself(tensor: Tensor) -> bool:
    """Whether an axis does not step over all that the faster axes reach."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride <= reach:
            return True
        reach += (size - 1) * stride
    return False


def move(parameters: Sequence[nn.Parameter], views: Sequence[Tensor]) -> None:
    """Let each parameter live in its view, of the same values: all of them, or none.

    The objects stay, with their attributes and their hooks. Unlike `parameter.data =
    view`, swapping keeps one version counter for all views of a vector: a backward pass
    through values that an update has overwritten raises an error, as it does without
    a vector.
    """
    twins = [_twin(p, view) for p, view in zip(parameters, views, strict=True)]
    moved: list[tuple[nn.Parameter, nn.Parameter]] = []
    try:
        for pair in zip(parameters, twins, strict=True):
            torch.utils.swap_tensors(*pair)
            moved.append(pair)
    except BaseException:
        for pair in reversed(moved):
            torch.utils.swap_tensors(*pair)
        raise


def _twin(parameter: nn.Parameter, view: Tensor) -> nn.Parameter:
    """Return a parameter that has of the other one what a swap would take from it."""
    twin = nn.Parameter(view)
    vars(twin).update(vars(parameter))
    _torch.share_hooks(parameter, twin)
    return twin
