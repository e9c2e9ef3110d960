"""What torchrun tells a process that it starts, by environment variables."""

import os
from collections.abc import Mapping
from typing import NamedTuple

from minitrain.system.errors import SettingsError


class Launch(NamedTuple):
    """Which of how many processes this is."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Its number among those of its machine."""
    local_world_size: int = 1
    num_restarts: int = 0
    """How often torchrun has started the processes again."""

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> "Launch":
        """Read the variables; without them there is one process.

        Raises:
            SettingsError: One of them is missing, or is not a number.
        """
        if "WORLD_SIZE" not in environment:
            return cls()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        try:
            rank, world_size, local_rank, local = (int(environment[n]) for n in names)
            restarts = int(environment.get("TORCHELASTIC_RESTART_COUNT", 0))
        except (KeyError, ValueError) as error:
            raise SettingsError(
                f"WORLD_SIZE is set, but {error}: let torchrun start the processes, "
                "which sets RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE"
            ) from None
        return cls(rank, world_size, local_rank, local, restarts)
