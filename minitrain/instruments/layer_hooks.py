"""The norms of the gradients of single samples, from an ordinary backward pass."""

import math
from itertools import chain
from typing import Self

import torch
from torch import Tensor, nn

from minitrain.instruments.layer_watcher import LayerWatcher
from minitrain.instruments.per_sample import Withheld
from minitrain.instruments.per_sample_layers import BATCH_NORMS, find_layers
from minitrain.norms import norm


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
        self._model = model
        self._survey()

    def _survey(self) -> None:
        """Find the layers, and note what they were found by."""
        self._is_checked = False
        self.withheld: str | None = None
        """Why there are no norms."""
        self._watchers: list[LayerWatcher] = []
        try:
            layers = find_layers(self._model).items()
            self._watchers = [LayerWatcher(name, layer) for name, layer in layers]
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
                term, such as a penalty, that belongs to no sample. By default steps
                are checked until norms are asked for: an update may be left out in the
                first ones, and then a loop does the same in every step.
        """
        if self._modes() != self._surveyed:
            self._survey()
        check = not self._is_checked if check is None else check
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

    def mean_square(self, num_samples: int, total: float | None = None) -> float | None:
        """Return s = mean_i |grad l_i|^2, or None as `squared` does.

        Args:
            num_samples: n.
            total: |g|^2 of the gradient that an update uses, before clipping. In a step
                that is checked, it must be what came back.
        """
        if total is not None:
            self._check_total(total)
        if self._is_withheld(num_samples):
            return None
        parts = chain(*(watcher.norms for watcher in self._watchers))
        return num_samples * sum([float(x.dot(x)) for x in chain(*parts)])

    def _check_total(self, square: float) -> None:
        """Withhold the norms where an update uses another gradient than came back."""
        totals = [x for watcher in self._watchers for x in watcher.totals.values()]
        if totals and not math.isclose(norm(totals) ** 2, square, rel_tol=1e-3):
            self.withheld = self.withheld or (
                "the gradient of the update is not the one that backward() has left: "
                "it was scaled, clipped or added to"
            )

    def check_next(self) -> None:
        """Check the next step as if it were the first one."""
        self._is_checked = False

    def _is_withheld(self, num_samples: int) -> bool:
        """Return whether there are no norms, and note why if that is new."""
        self._is_checked = True
        for watcher in self._watchers:
            obstacle = watcher.obstacle_to(num_samples)
            if obstacle is not None and self.withheld is None:
                self.withheld = f"{watcher.name or 'the model'}: {obstacle}"
        return self.withheld is not None
