"""Settings read from the command line and from TOML, and written as TOML."""

import functools
import itertools
import re
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from inspect import getdoc
from pathlib import Path
from typing import Any

import tomli_w
import tyro

from minitrain.experiment.catalog import find, shipped
from minitrain.experiment.settings import Config, Settings, keys
from minitrain.system.errors import CheckpointError, SettingsError
from minitrain.system.files import open_regular

MAX_BYTES = 1_000_000
"""Of a settings file: more than any has, and less than anybody has to wait for."""

MANNER = {"run-dir", "resume", "allow-changes", "debug"}
"""Settings that say how a run is started, and are no part of what it is."""


def parse(arguments: Sequence[str], program: str = "train") -> Config:
    """Return the settings of a command line `[EXPERIMENT] [--key VALUE ...]`.

    A command line that cannot be read ends the program with code 2, and `--help` with
    code 0.

    Raises:
        SettingsError: A setting is bad; the message has its key, value and rule.
    """
    _check_words(arguments)
    defaults = Config()
    if arguments and not arguments[0].startswith("-"):
        defaults, arguments = read(find(arguments[0])), arguments[1:]
    config = _command_line(arguments, defaults, program)
    if not config.resume or config.run_dir is None or defaults != Config():
        return config
    # A run that is resumed keeps its settings: only flags stand above them.
    kept = _kept_settings(config.run_dir)
    return _command_line(arguments, kept, program) if kept else config


def _check_words(arguments: Sequence[str]) -> None:
    """Refuse a flag without its value, which would stand for something else, or two."""
    seen: set[str] = set()
    for word, after in itertools.pairwise([*arguments, "--"]):
        flag, _, value = word.partition("=")
        if not flag.startswith("--"):
            continue
        if (value or after) == "" or word.endswith("="):
            raise SettingsError(f"{flag}: an empty value is given")
        key = re.sub(r"^--(.*\.)?no-", r"--\1", flag.replace("_", "-"))
        if key in seen:
            raise SettingsError(f"{flag}: given twice")
        seen.add(key)


def _kept_settings(folder: Path) -> Config | None:
    """Return the settings of a run, which its checkpoints hold too, if there is one."""
    if (folder / "config.toml").exists():
        return read(folder / "config.toml")
    from minitrain.runs import checkpoint  # with torch: only where it is needed

    for path in reversed(checkpoint.find_all(folder / "checkpoints")):
        with suppress(CheckpointError):
            return from_toml(checkpoint.load(path).state["settings"])
    return None


def _command_line(arguments: Sequence[str], defaults: Config, program: str) -> Config:
    return tyro.cli(
        Config,
        args=arguments,
        default=defaults,
        prog=f"{program} [EXPERIMENT]",
        description=f"{getdoc(Config)}\n\nWith minitrain come {', '.join(shipped())}.",
    )


def read(path: Path) -> Config:
    """Return the settings of a TOML file, over the defaults.

    Raises:
        SettingsError: The file cannot be read, is no TOML, or has a bad setting.
    """
    try:
        with open_regular(path) as file:  # a pipe or a device might never end
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise SettingsError(f"cannot read {path}: it has more than {MAX_BYTES} bytes")
    try:
        return from_toml(data.decode("utf-8-sig"))
    except SettingsError as error:
        raise SettingsError(f"in {path}: {error}") from None
    except ValueError as error:  # no TOML, no UTF-8, or a number of 5000 digits
        raise SettingsError(f"{path} is not valid TOML: {error}") from None
    except RecursionError:
        raise SettingsError(f"{path} is not valid TOML: nested too deeply") from None


def from_toml(text: str) -> Config:
    """Return the settings of a TOML text, over the defaults.

    Raises:
        TOMLDecodeError: It is no TOML.
        SettingsError: A setting is bad.
    """
    return Config(**_renamed(tomllib.loads(text), "-", "_"))


def to_toml(config: Config) -> str:
    """Return the settings as a TOML text that `read` understands, without the unset."""
    exclude = {"resume", "allow_changes"}
    values = config.model_dump(mode="json", exclude_none=True, exclude=exclude)
    return tomli_w.dumps(_renamed(values, "_", "-"))


def _renamed(values: Any, old: str, new: str) -> Any:
    """Return the same nested dictionary with `old` replaced by `new` in every key."""
    if not isinstance(values, dict):
        return values
    renamed = {k.replace(old, new): _renamed(v, old, new) for k, v in values.items()}
    if len(renamed) < len(values):
        raise SettingsError(f"one setting twice, among {', '.join(values)}")
    return renamed


def flatten(config: Config) -> dict[str, Any]:
    """Return the settings that a run is made of, by their keys on the command line."""
    values = {
        key: functools.reduce(getattr, key.replace("-", "_").split("."), config)
        for key in keys(Config)
        if key not in MANNER
    }
    return {k: value for k, value in values.items() if not isinstance(value, Settings)}


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """Return the settings with other values of some keys, as `flatten` gives them.

    Keys that are none of a setting are ignored.
    """
    nested: dict[str, Any] = {}
    for key, value in flatten(config).items():
        value = values.get(key, value)
        section, _, name = key.replace("-", "_").rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    return Config(**nested)


def free_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> set[str]:
    """Return the keys of settings that a resumed run may change freely.

    They are not part of what is computed. Nor are the epochs, which say when it ends,
    unless the learning rate goes by the number of steps.

    Args:
        before: The settings of the run, as `flatten` gives them.
        now: Those that it would be continued with.
    """
    sections = ("log.", "checkpoint.", "instruments.")
    free = {"device", "threads", "data.root"}
    if before["schedule.name"] == now["schedule.name"] == "constant":
        free.add("epochs")
    return {key for key in now if key in free or key.startswith(sections)}
