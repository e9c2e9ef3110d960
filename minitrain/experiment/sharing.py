"""What settings and processes have to do with each other."""

from pathlib import Path

from minitrain.distributed.group import Group, Single
from minitrain.distributed.launch import Launch
from minitrain.experiment.settings import Config
from minitrain.system.errors import SettingsError
from minitrain.system.terminal import say

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


def continued(config: Config, group: Group | Single) -> Config:
    """Return the settings by which torchrun's processes, started again, go on."""
    folder = config.run_dir or group.kept(RUN_DIR)
    if not group.num_restarts or config.resume or not folder:
        return config
    if not group.share(Path(folder).exists()):
        return config
    say(f"restart {group.num_restarts}: continuing with --run-dir {folder} --resume")
    return config.model_copy(update={"run_dir": Path(folder), "resume": True})
