"""What a run takes of the machine: a device, and threads."""

import os

import torch
from torch import Tensor, nn

from minitrain.experiment.settings import Config
from minitrain.system.errors import SettingsError

THREADS_PER_CORE = 16
"""With more than these a machine does nothing but change between them."""

LONG = 1e8
"""Multiplications in the forward pass of a batch that are worth more than one thread.

Threads that wait for each other burn a core, and stall on a busy machine.
"""

MULTIPLYING = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""The layers that they are counted in."""


def find_device(name: str, local_rank: int = 0) -> torch.device:
    """Return the device of this name; `auto` is an accelerator where there is one.

    Args:
        name: As in the settings.
        local_rank: Of this process among those of the machine, which take the devices
            in turn where the name says none.

    Raises:
        SettingsError: It is not available.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        name = str(accelerator or "cpu")
    if name in ("cuda", "xpu") and local_rank:
        name = f"{name}:{local_rank % torch.accelerator.device_count()}"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(
            f"device = {name!r}: not available here: {reason}"
        ) from None


def set_threads(config: Config, multiplications: float) -> None:
    """Set the threads of the settings, or else one, or one for each core.

    Raises:
        SettingsError: There are too many.
    """
    most = THREADS_PER_CORE * (os.cpu_count() or 1)
    threads = config.threads
    if threads is None and (multiplications < LONG or config.shards > 1):
        threads = 1  # where there are shards, processes share the cores
    if threads is not None and threads > most:
        raise SettingsError(
            f"threads = {threads}: must be at most {most} here, {THREADS_PER_CORE} for "
            "each core"
        )
    if threads is not None:
        torch.set_num_threads(threads)


class Multiplications:
    """Counts the multiplications of the layers that a model calls, in a `with`.

    >>> layer = nn.Linear(3, 2)
    >>> with Multiplications(layer) as counted:
    ...     _ = layer(torch.ones(5, 3))
    >>> counted.number
    30
    """

    def __init__(self, model: nn.Module) -> None:
        self.number = 0
        self._layers = [m for m in model.modules() if isinstance(m, MULTIPLYING)]

    def __enter__(self) -> "Multiplications":
        self._hooks = [m.register_forward_hook(self._count) for m in self._layers]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _count(self, layer: nn.Module, _: object, outputs: object) -> None:
        weight = layer.weight
        if isinstance(outputs, Tensor) and isinstance(weight, Tensor) and len(weight):
            self.number += outputs.numel() * weight[0].numel()
