"""What settings and processes have to do with each other."""

from pathlib import Path

from minitrain.distributed.group import Group, Single
from minitrain.distributed.launch import Launch
from minitrain.experiment.settings import Config
from minitrain.instruments.findings import Finding
from minitrain.system.errors import SettingsError
from minitrain.system.terminal import say

MOST_WAITING = 0.5
"""Share of the steps' time; with more, processes wait longer than they compute."""

RUN_DIR = "run directory"
"""By this name it is remembered where a group may have to continue."""


def check_shards(config: Config, launch: Launch) -> None:
    """Make sure that the processes can share the shards.

    Raises:
        SettingsError: They cannot.
    """
    world_size, size = launch.world_size, config.data.batch_size
    if config.shards % world_size:
        raise SettingsError(
            f"shards = {config.shards}: {world_size} processes cannot share them "
            f"evenly. Start a number of processes that divides --shards, which is a "
            "power of two; it is part of the experiment, as the batch size is"
        )
    if config.shards > size:
        raise SettingsError(
            f"shards = {config.shards}: a batch of data.batch-size = {size} samples "
            "cannot be cut into so many"
        )


def find_waiting(step: int, share: float, world_size: int) -> list[Finding]:
    """Look at whether the processes are worth it.

    Args:
        step: The last one that counts.
        share: What rank 0 spent of the steps' time on other ranks' numbers.
        world_size: How many they are.
    """
    if share <= MOST_WAITING:
        return []
    text = (
        f"{share:.0%} of the steps' time goes into telling {world_size} processes of "
        "each other's gradients, and waiting for them: longer than they compute."
    )
    fewer = f"{world_size // 2} processes" if world_size > 2 else "one process"
    advice = (
        f"Take {fewer}, which changes no bit; or have more to compute in a step: "
        "a larger --data.batch-size, or --accumulate."
    )
    return [Finding("processes wait", step, text, advice)]


def continued(config: Config, group: Group | Single) -> Config:
    """Return the settings by which torchrun's processes, started again, go on."""
    folder = group.kept(RUN_DIR)  # which an earlier start had for itself
    if not group.num_restarts or config.resume or not folder:
        return config
    if not group.share(Path(folder).exists()):
        return config
    say(f"restart {group.num_restarts}: continuing with --run-dir {folder} --resume")
    return config.model_copy(update={"run_dir": Path(folder), "resume": True})
