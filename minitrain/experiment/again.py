"""The settings of a run of which something is made again: a step, or a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minitrain.experiment.reading import read_run, with_values
from minitrain.experiment.settings import Config
from minitrain.system.errors import SettingsError


def read_settings(folder: Path, *, trust_code: bool = False) -> Config:
    """Return the settings of a run that must be there, without its panel.

    What is made again of a run needs none, and a panel changes no bit.

    Raises:
        SettingsError: The folder holds no run; or as `read_run` does.
    """
    config = None
    if (folder / "config.toml").exists():
        config = read_run(folder, trust_code=trust_code)
    if config is None:
        raise SettingsError(f"{folder} is not a run directory: it holds no config.toml")
    unwatched = config.instruments.model_copy(update={"budget": 0.0})
    return config.model_copy(update={"instruments": unwatched})


def settings_at(step: int, config: Config, changes: Sequence[Any]) -> Config:
    """Return the settings that a step was made with, from the last ones of a run.

    Args:
        step: The step; 0 is before the first.
        config: The last settings.
        changes: Those that the summary tells of.
    """
    later = [change for change in changes if change["step"] >= step]
    return with_values(config, {each["key"]: each["old"] for each in reversed(later)})
