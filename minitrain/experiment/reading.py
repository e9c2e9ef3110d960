"""Settings read from the command line and from TOML, and written as TOML."""

import functools
import stat
import tomllib
from collections.abc import Sequence
from inspect import getdoc
from pathlib import Path
from typing import Any

import tomli_w
import tyro

from minitrain.experiment.catalog import find, shipped
from minitrain.experiment.settings import Config, Settings, keys
from minitrain.system.errors import SettingsError

MAX_BYTES = 1_000_000
"""Of a settings file: more than any has, and less than anybody has to wait for."""


def parse(arguments: Sequence[str], program: str = "train") -> Config:
    """The settings of a command line `[EXPERIMENT] [--key VALUE ...]`.

    Raises SettingsError with key, value and rule, or exits with code 2 where the
    command line itself cannot be read, and with 0 after `--help`.
    """
    defaults = Config()
    if arguments and not arguments[0].startswith("-"):
        defaults, arguments = read(find(arguments[0])), arguments[1:]
    config = _command_line(arguments, defaults, program)
    kept = config.run_dir / "config.toml" if config.resume and config.run_dir else None
    if kept is not None and kept.exists() and defaults == Config():
        # A run that is resumed keeps its settings: only flags stand above them.
        config = _command_line(arguments, read(kept), program)
    return config


def _command_line(arguments: Sequence[str], defaults: Config, program: str) -> Config:
    return tyro.cli(
        Config,
        args=arguments,
        default=defaults,
        prog=f"{program} [EXPERIMENT]",
        description=f"{getdoc(Config)}\n\nWith minitrain come {', '.join(shipped())}.",
    )


def read(path: Path) -> Config:
    """The settings of a TOML file, over the defaults.

    Raises SettingsError where it cannot be read, is no TOML, or has a bad setting.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe or a device might never end
            raise SettingsError(f"cannot read {path}: it is not a regular file")
        if status.st_size > MAX_BYTES:
            raise SettingsError(
                f"cannot read {path}: {status.st_size} bytes are more than settings "
                f"have, at most {MAX_BYTES}"
            )
        data = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from None
    try:
        return from_toml(data.decode())
    except SettingsError as error:
        raise SettingsError(f"in {path}: {error}") from None
    except ValueError as error:  # no TOML, no UTF-8, or a number of 5000 digits
        raise SettingsError(f"{path} is not valid TOML: {error}") from None
    except RecursionError:
        raise SettingsError(f"{path} is not valid TOML: nested too deeply") from None


def from_toml(text: str) -> Config:
    """The settings of a TOML text, over the defaults.

    Raises TOMLDecodeError where it is no TOML, SettingsError where a setting is bad.
    """
    return Config(**_renamed(tomllib.loads(text), "-", "_"))


FREE = {"epochs", "device", "threads", "data.root"}
"""What a resumed run may change, besides whole sections: settings that are not
part of what is computed or, as epochs, say when it ends."""


FREE_SECTIONS = ("log.", "checkpoint.", "instruments.")


def changes(old: Config, new: Config) -> tuple[list[str], list[str]]:
    """The settings that differ, as `key: old -> new`: the free ones, and the others."""
    before, after = _flat(old), _flat(new)
    free: list[str] = []
    bound: list[str] = []
    for key in sorted(before.keys() - {"run-dir", "resume", "allow-changes", "debug"}):
        if before[key] != after[key]:
            is_free = key in FREE or key.startswith(FREE_SECTIONS)
            change = f"{key}: {before[key]} -> {after[key]}"
            (free if is_free else bound).append(change)
    return free, bound


def _flat(config: Config) -> dict[str, Any]:
    """The value of every key; a section is no setting, its own keys are."""
    values = {
        key: functools.reduce(getattr, key.replace("-", "_").split("."), config)
        for key in keys(Config)
    }
    return {k: value for k, value in values.items() if not isinstance(value, Settings)}


def to_toml(config: Config) -> str:
    """The settings as a TOML file that `read` understands, without the unset ones."""
    # How a run was started is not part of what it is.
    exclude = {"resume", "allow_changes"}
    values = config.model_dump(mode="json", exclude_none=True, exclude=exclude)
    return tomli_w.dumps(_renamed(values, "_", "-"))


def _renamed(values: Any, old: str, new: str) -> Any:
    """The same nested dictionary with `old` replaced by `new` in every key."""
    if not isinstance(values, dict):
        return values
    renamed = {k.replace(old, new): _renamed(v, old, new) for k, v in values.items()}
    if len(renamed) < len(values):
        raise SettingsError(f"one setting twice, among {', '.join(values)}")
    return renamed
