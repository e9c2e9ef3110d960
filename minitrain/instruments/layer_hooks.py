"""Watching the layers of a model during an ordinary backward pass."""

import math
import time
from functools import partial
from itertools import chain
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from minitrain.instruments.per_sample import Part, Withheld, check_sum, sample_norms
from minitrain.instruments.per_sample_layers import (
    BATCH_NORMS,
    LAYERS,
    find_layers,
    trainable_parameters,
    versions_of,
)
from minitrain.randomness import Kept, RandomStates


class PerSampleNorms:
    """The squared norms |grad l_i|^2 of the gradients of single samples.

    They are measured in the backward pass of a step. Gradients and everything else stay
    as they are without.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> inputs = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    >>> with PerSampleNorms(model).watch() as norms:
    ...     model(inputs).mean().backward()
    >>> norms.squared(num_samples=2)
    tensor([25.,  4.])

    What is differentiated while it watches, in one backward pass or in several, must in
    total be the mean (1/n) sum_i l_i over all n samples, where l_i depends on nothing
    but the i-th entry of the first dimension. BatchNorm, which breaks that, is
    recognized; other code that mixes samples is not.

    Known are the trainable parameters of the layers in `per_sample_layers.LAYERS`, such
    as `nn.Linear`, convolutions, `nn.Embedding`, `nn.LayerNorm` and
    `nn.MultiheadAttention`; for models with others the norms are withheld and
    `withheld` says why.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._has_watched = model, False
        self._survey()

    def _survey(self) -> None:
        """Find the layers, and note what they were found by."""
        self.withheld: str | None = None
        """Why there are no norms."""
        self._watchers: list[_LayerWatcher] = []
        try:
            layers = find_layers(self._model).items()
            self._watchers = [_LayerWatcher(name, layer) for name, layer in layers]
        except Withheld as reason:
            self.withheld = str(reason)
        modules = self._model.modules()
        self._batch_norms = [m for m in modules if isinstance(m, BATCH_NORMS)]
        self._parameters = [*self._model.parameters()]
        self._surveyed = self._modes()

    def _modes(self) -> list[bool]:
        """Return what trains, and how: a layer may be thawed, or BatchNorm switched."""
        modes = [parameter.requires_grad for parameter in self._parameters]
        return modes + [module.training for module in self._batch_norms]

    def watch(self, *, check: bool | None = None) -> Self:
        """Watch the passes of one step, until `close` or the end of a `with` block.

        Earlier steps are forgotten.

        Args:
            check: Whether to make sure that the addends add up to the gradient. They do
                not where a parameter is used outside of its layer, or the loss has a
                term, such as a penalty, that belongs to no sample. By default the first
                step is checked: a loop does the same in every one.
        """
        check = not self._has_watched if check is None else check
        self._has_watched = True
        if self._modes() != self._surveyed:
            self._survey()
        for watcher in self._watchers:
            watcher.watch(check)
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the hooks, and check what they have kept for it."""
        for watcher in self._watchers:
            watcher.close()

    @property
    def seconds(self) -> float:
        """What the hooks took of the passes' time."""
        return sum(watcher.seconds for watcher in self._watchers)

    def squared(self, num_samples: int) -> Tensor | None:
        """Return |grad l_i|^2 of all n samples in the order they came in, shape (n,).

        float32, or float64 where the model is. None where `withheld` says why, also
        where it turns out only now that the norms would be wrong.
        """
        if self._is_withheld(num_samples):
            return None
        # Each derivative was that of l_i / n. A layer has one norm a sample, or two.
        parts = [zip(*watcher.norms, strict=True) for watcher in self._watchers]
        norms = torch.cat([torch.cat(part) for part in chain(*parts)])
        return norms.view(-1, num_samples).square().sum(dim=0) * num_samples**2

    def mean_square(self, num_samples: int) -> float | None:
        """Return s = mean_i |grad l_i|^2, or None as `squared` does."""
        if self._is_withheld(num_samples):
            return None
        parts = chain(*(watcher.norms for watcher in self._watchers))
        return num_samples * sum([float(x.dot(x)) for x in chain(*parts)])

    def _is_withheld(self, num_samples: int) -> bool:
        """Return whether there are no norms, and note why if that is new."""
        for watcher in self._watchers:
            obstacle = watcher.obstacle_to(num_samples)
            if obstacle is not None and self.withheld is None:
                self.withheld = f"{watcher.name or 'the model'}: {obstacle}"
        return self.withheld is not None


class _LayerWatcher:
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
        earlier = self._grads.get(name)
        self._grads[name] = grads[0] if earlier is None else earlier + grads[0]

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
