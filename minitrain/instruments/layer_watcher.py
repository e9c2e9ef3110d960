"""Watching one layer of a model during an ordinary backward pass."""

import math
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from minitrain.instruments.per_sample import Part, Withheld, check_sum, sample_norms
from minitrain.instruments.per_sample_layers import (
    LAYERS,
    trainable_parameters,
    versions_of,
)
from minitrain.randomness import Kept, RandomStates


class LayerWatcher:
    """Measures one layer's share of the norms.

    Its hooks keep the inputs of a call until the derivatives of the loss by its outputs
    come back, and measure both while they are in the caches. The check needs the
    gradients of the parameters too, which come later. They hold on to one pass at most.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self._module, self._rule = module, LAYERS[type(module)]
        self._trainable = trainable_parameters(module)
        self._names = {name: name for name in self._trainable}
        self._handles: list[RemovableHandle] = []
        self._nodes: list[Node] = []
        self._check = False
        self._forget()

    def _forget(self) -> None:
        self.norms: list[list[Tensor]] = []
        """Of each pass, as `sample_norms` gives them."""
        self._num_samples = 0
        self._step = object()
        self.seconds = 0.0
        self._obstacle: str | None = None
        self._inputs: tuple[Any, ...] | None = None
        self._versions: list[int] = []
        self._random: Kept | None = None
        self._random_before: Kept | None = None
        self._delta: Tensor | None = None
        self._parts: list[Part] | None = None
        self._grads: dict[str, Tensor] = {}
        self.totals: dict[str, Tensor] = {}
        """What came back to each parameter in all passes, where a step is checked."""

    def watch(self, check: bool) -> None:
        """Forget earlier passes, and set the hooks."""
        self._forget()
        self._check = check
        hooks = [
            self._module.register_forward_hook(
                self._on_call, prepend=True, with_kwargs=True
            )
        ]
        if self._rule.draws(self._module):
            hooks.append(self._module.register_forward_pre_hook(self._on_start))
        if check:
            # A hook of a parameter itself would leave an empty dictionary behind that
            # every later pass looks into. A node lives as long as somebody holds it.
            self._nodes = [get_gradient_edge(p).node for p in self._trainable.values()]
            hooks += [
                node.register_prehook(partial(self._on_sum, name))
                for name, node in zip(self._trainable, self._nodes, strict=True)
            ]
        self._handles += hooks

    def close(self) -> None:
        """Remove the hooks, and take in what the check has waited for."""
        while self._handles:
            self._handles.pop().remove()
        self._nodes.clear()
        if self._check:
            self._measure()

    def obstacle_to(self, num_samples: int) -> str | None:
        """Return why there are no norms of this layer for as many samples, or None."""
        if self._obstacle is not None:
            return self._obstacle
        if self._inputs is not None:
            return "it was called, but no gradient came back to it"
        if not self.norms:
            return "it was not called"
        if self._num_samples != num_samples:
            return (
                f"its inputs have {self._num_samples} entries for {num_samples} samples"
            )
        return None

    def _on_start(self, *_: object) -> None:
        device = next(iter(self._trainable.values())).device
        try:
            self._random_before = RandomStates(device).keep()
        except Exception as error:
            self._stop(error)

    def _on_call(
        self, _: nn.Module, args: Any, kwargs: dict[str, Any], output: Any
    ) -> None:
        if isinstance(output, tuple):  # of attention, and its weights
            output = output[0]
        if not output.requires_grad:
            return
        if self._delta is not None:
            self._measure()
        elif self._inputs is not None:
            self._stop(Withheld("it was called more than once in a pass"))
        try:
            self._inputs = self._rule.inputs_of(*args, **kwargs)
            self._versions = versions_of(self._inputs)
            self._random = self._random_before
            node: Any = output.grad_fn
            node.register_prehook(partial(self._on_gradient, self._step))
        except Exception as error:
            self._stop(error)

    def _on_gradient(self, step: object, grads: tuple[Tensor, ...]) -> None:
        if step is not self._step:
            return  # a late gradient of an earlier step
        start = time.perf_counter()
        if self._inputs is None or self._delta is not None:
            self._stop(Withheld("more than one gradient came back to it"))
        self._delta = grads[0]
        self._find_parts()
        if not self._check:
            self._measure()
        self.seconds += time.perf_counter() - start

    def _on_sum(self, name: str, grads: tuple[Tensor, ...]) -> None:
        for sums in (self._grads, self.totals):
            earlier = sums.get(name)
            sums[name] = grads[0] if earlier is None else earlier + grads[0]

    def _find_parts(self) -> None:
        """Find the parts of the layer while its weights are still those of the call."""
        if torch.is_grad_enabled():  # in a backward pass, too, with create_graph=True
            with torch.no_grad():
                return self._find_parts()
        self._parts = []
        try:
            of_call = self._inputs, self._delta, self._names, self._random
            self._parts = self._rule.find_parts_of(self._module, *of_call)
        except Exception as error:  # watching must not end a training
            self._stop(error)

    def _measure(self) -> None:
        """Turn the parts of a pass into norms."""
        if torch.is_grad_enabled():
            with torch.no_grad():
                return self._measure()
        inputs, delta, parts = self._inputs, self._delta, self._parts
        if inputs is None or delta is None or parts is None:
            return
        self._inputs = self._delta = self._parts = None
        try:
            if versions_of(inputs) != self._versions:
                raise Withheld("its input was changed in place")
            norms = sample_norms(parts)
            if self._check:
                # Half of the digits: more are lost only where the addends cancel.
                tolerance = math.sqrt(torch.finfo(delta.dtype).eps)
                tolerance *= torch.stack(norms).sum()
                with torch.autocast(delta.device.type, enabled=False):
                    check_sum(parts, self._grads, tolerance)
            self.norms.append(norms)
            self._num_samples += len(delta)
        except Exception as error:
            self._stop(error)
        self._grads.clear()

    def _stop(self, reason: Exception) -> None:
        if self._obstacle is None:
            known = isinstance(reason, Withheld)
            kind = "" if known else f"{type(reason).__name__}: "
            self._obstacle = f"{kind}{reason}"
