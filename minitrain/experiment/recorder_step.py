"""One step of a recorded loop, around the loop's own statements."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from minitrain import tags
from minitrain.checks import warn_of_evaluation_mode
from minitrain.experiment.recorder_network import Network
from minitrain.instruments.obstacles import find_late_gradient
from minitrain.instruments.recompute import LossOf
from minitrain.instruments.watch import Unread, Watch
from minitrain.norms import clip_factor, norm
from minitrain.runs.scalars import guide_lines
from minitrain.system.terminal import say


class RecordedStep:
    """One step of a network, in whose `with` block the loop's own statements stand.

    `Recorder.step` makes it. The block holds the forward pass, the backward pass and
    the update; the gradient is read when the loop calls `optimizer.step`.
    """

    def __init__(
        self,
        network: Network,
        loss_of: LossOf,
        num_samples: int,
        autocast: torch.dtype | None,
        *,
        is_logged: bool,
        is_last: bool,
    ) -> None:
        self.network, self.loss_of = network, loss_of
        self.num_samples, self.autocast = num_samples, autocast
        self.readings: Mapping[str, float] = MappingProxyType({})
        """What the panel read, complete when the block is left."""
        self.is_entered = False
        self._is_logged, self._is_last = is_logged, is_last
        self._watch: Watch | Unread | None = None
        self._hook: RemovableHandle | None = None
        self._loss: Tensor | None = None
        self._norms: Tensor | None = None
        self._lr: float | None = None

    def loss(self) -> Tensor:
        """Compute the loss, with its graph; the board shows it as `loss/train`.

        It is `loss_of()` and no more: a loop may as well compute its loss by itself.
        """
        loss = self.loss_of()
        if self._is_logged:
            self._loss = loss.detach()
        return loss

    def clip(self, max_norm: float) -> float:
        """Multiply the gradient by min(1, max_norm / (|g| + 1e-6)); return |g|.

        It stands before `optimizer.step`, in the place of `clip_grad_norm_`, and tells
        the instruments what was done to the gradient: they would take one that was
        shortened behind their back for a wrong one.
        """
        if self._watch is None:
            raise RuntimeError("clip belongs inside of the `with run.step(...)` block")
        groups = self.network.optimizer.param_groups
        params = [p for group in groups for p in group["params"]]
        grads = [p.grad for p in params if p.grad is not None]
        self._norms = self.network.grad_norms()
        total = norm(grads)
        factor = clip_factor(total, max_norm).item()
        if factor < 1:
            for grad in grads:
                grad.mul_(factor)
        self._watch.note_clipping(factor)
        return total.item()

    def values(self) -> dict[str, float]:
        """Return the tags and values of the step, where it is logged or was read."""
        if not (self._is_logged or self.readings):
            return {}
        values: dict[str, float] = {}
        if self._loss is not None:
            values[tags.TRAIN_LOSS] = self._loss.item()
        if self._lr is not None:
            values[tags.LR] = self._lr
        if self._lr is not None and self._norms is not None:
            total, *each = torch.cat(
                [norm(self._norms).reshape(1), self._norms]
            ).tolist()
            values[tags.GLOBAL_GRAD_NORM] = total
            named = zip(self.network.names(), each, strict=True)
            values |= {tags.tag(tags.GRAD_NORM, name): each for name, each in named}
        values |= self.readings
        return values | guide_lines(values, self.num_samples)

    def __enter__(self) -> Self:
        network, self.is_entered = self.network, True
        number = network.begin_step(self.loss_of, self.num_samples, self.autocast)
        self._watching = network.panel.watch(
            number,
            self.loss_of,
            num_samples=self.num_samples,
            is_last=self._is_last,
            autocast=self.autocast,
        )
        self._watch = self._watching.__enter__()
        if self._is_logged:
            read = self._read_gradient
            self._hook = network.optimizer.register_step_pre_hook(read)
        if not network.model.training and "mode" not in network.reported:
            network.reported.add("mode")
            warn_of_evaluation_mode(stacklevel=3)
        return self

    def __exit__(self, *error: Any) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._watching.__exit__(*error)
        if self._watch is not None:
            self.readings, self._watch = self._watch.readings, None
        if error[0] is None and self._is_logged and self._lr is None:
            self._tell_no_update()

    def _read_gradient(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """Read what the optimizer is about to use, unless clipping has read it."""
        if self._norms is None and not find_late_gradient(optimizer, args, kwargs):
            self._norms = self.network.grad_norms()
        self._lr = float(optimizer.param_groups[0]["lr"])

    def _tell_no_update(self) -> None:
        if "update" not in self.network.reported:
            self.network.reported.add("update")
            say(
                "warning: optimizer.step() was not called in the block of a step: "
                "nothing was read of it"
            )
