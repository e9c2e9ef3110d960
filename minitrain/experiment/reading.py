"""Settings read from the command line and from TOML, and written as TOML."""

import functools
import itertools
import re
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import tomli_w
import tyro

from minitrain.experiment.catalog import find, shipped
from minitrain.experiment.definition import Definition, builtin, definition_of
from minitrain.experiment.settings import Config, Settings, keys
from minitrain.experiment.source import FOLDER, load_file
from minitrain.system.errors import CheckpointError, SettingsError
from minitrain.system.files import open_regular

MAX_BYTES = 1_000_000
"""Bytes of a settings file: more than any has, and read without a wait."""

MANNER = {"run-dir", "resume", "allow-changes", "trust-code", "debug"}
"""Settings that say how a run is started, and are not part of what it is."""


def parse(arguments: Sequence[str], program: str = "train") -> Config:
    """Return the settings of a command line `[EXPERIMENT] [--key VALUE ...]`.

    A command line that cannot be read ends the program with code 2, and `--help` with
    code 0.

    Raises:
        SettingsError: A setting is bad; the message has its key, value and rule.
    """
    words = _read_words(arguments)
    _check_place(arguments)
    named = find(arguments[0]) if arguments and arguments[0][:1] != "-" else None
    folder = words.get("--run-dir") if "--resume" in words else None
    if named is not None and named.suffix != ".py":
        defaults = read(named)  # says itself what it trains
    else:
        definition = load_file(named) if named else None
        kept = None
        if folder:  # a run that is resumed keeps its settings: flags stand above them
            trusted = "--trust-code" in words
            kept = read_run(Path(folder), definition, trust_code=trusted)
        defaults = kept or (definition or builtin()).config()
    return _command_line(arguments[named is not None :], defaults, program)


def _check_place(arguments: Sequence[str]) -> None:
    """Make sure that no experiment's file stands behind the flags.

    Raises:
        SettingsError: One does.
    """
    for before, word in itertools.pairwise(arguments):
        is_value = before.startswith("--") and "=" not in before
        is_value = is_value and before.removeprefix("--") not in MANNER - {"run-dir"}
        if not is_value and Path(word).suffix in (".py", ".toml") and word[0] != "-":
            raise SettingsError(
                f"Unrecognized options: {word}. An experiment comes first on the "
                "command line, before all settings, and there is one at most"
            )


def _read_words(arguments: Sequence[str]) -> dict[str, str]:
    """Return the flags with what follows each.

    Raises:
        SettingsError: A flag is there twice, or without its value, in whose place the
            next word would be taken.
    """
    words: dict[str, str] = {}
    for word, after in itertools.pairwise([*arguments, "--"]):
        flag, _, value = word.partition("=")
        if not flag.startswith("--"):
            continue
        if (value or after) == "" or word.endswith("="):
            raise SettingsError(f"{flag}: an empty value is given")
        key = re.sub(r"^--(.*\.)?no-", r"--\1", flag.replace("_", "-"))
        if key in words:
            raise SettingsError(f"{flag}: given twice")
        words[key] = value or after
    return words


def read_run(
    folder: Path, definition: Definition | None = None, *, trust_code: bool = False
) -> Config | None:
    """Return the settings of a run, if there is one.

    Args:
        folder: The run directory.
        definition: Its experiment, where that is known already.
        trust_code: Whether the source that the run keeps may be executed.

    Raises:
        SettingsError: The settings are damaged, or nobody trusts the source.
    """
    text, path = _kept_settings(folder), folder / "config.toml"
    if text is None:
        return None
    definition = definition or definition_in(folder, text, trust_code)
    try:
        return from_toml(text, definition)
    except SettingsError as error:
        raise SettingsError(f"in {path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from None


def _kept_settings(folder: Path) -> str | None:
    """Return the settings of a run as TOML, if there is one.

    They stand in `config.toml`, and in every checkpoint too.
    """
    if (folder / "config.toml").exists():
        return _text_of(folder / "config.toml")
    from minitrain.runs import checkpoint  # with torch: only where it is needed

    for path in reversed(checkpoint.find_all(folder / "checkpoints")):
        with suppress(CheckpointError, KeyError, AttributeError):
            return str(checkpoint.load(path).state["settings"])
    return None


def definition_in(folder: Path, text: str, trusted: bool) -> Definition:
    """Return the experiment of a run, by the settings that it keeps.

    Raises:
        SettingsError: Its code would be executed, and nobody has said that it may.
    """
    name = None
    with suppress(ValueError, RecursionError):  # whoever reads the settings tells it
        name = tomllib.loads(text).get("experiment")
    if not isinstance(name, str):
        return builtin()
    path = folder / name
    if not trusted:
        raise SettingsError(
            f"the run {folder} is made by {path}, which would be executed: name the "
            "experiment's file on the command line, or say --trust-code (in Python "
            "trust_code=True) if you know what is in it"
        )
    return load_file(path)


def _command_line(arguments: Sequence[str], defaults: Config, program: str) -> Config:
    definition = definition_of(defaults)
    return tyro.cli(
        type(defaults),
        args=arguments,
        default=defaults,
        prog=f"{program} [EXPERIMENT]",
        description=_description(definition),
    )


def _description(definition: Definition) -> str:
    """Return what the help begins with."""
    if definition.path is not None:
        return f"{definition.about}\n\nThe experiment of {definition.path}."
    return (
        "Train a network by stochastic gradient descent and log how it went.\n\n"
        "An EXPERIMENT can stand first: a Python file of your own, or a TOML file with "
        "the settings below, which flags override. It is given by its path, or where "
        "this has no extension and no slash, it is one that comes with minitrain: "
        f"{', '.join(shipped())}. Without one a multilayer perceptron is trained on "
        "MNIST."
    )


def read(path: Path) -> Config:
    """Return the settings of a TOML file, over the defaults of its experiment.

    Raises:
        SettingsError: The file cannot be read, is not TOML, or has a bad setting.
    """
    text = _text_of(path)
    try:
        named = tomllib.loads(text).get("experiment")
        own = isinstance(named, str) and load_file(path.parent / named)
        return from_toml(text, own or None)
    except SettingsError as error:
        raise SettingsError(f"in {path}: {error}") from None
    except ValueError as error:  # no TOML, or a number of 5000 digits
        raise SettingsError(f"{path} is not valid TOML: {error}") from None
    except RecursionError:
        raise SettingsError(f"{path} is not valid TOML: nested too deeply") from None


def _text_of(path: Path) -> str:
    try:
        with open_regular(path) as file:  # a pipe or a device might never end
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise SettingsError(f"cannot read {path}: it has more than {MAX_BYTES} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from None


def from_toml(text: str, definition: Definition | None = None) -> Config:
    """Return the settings of a TOML text, over the defaults of an experiment.

    Args:
        text: The settings.
        definition: The experiment; by default the built-in one.

    Raises:
        TOMLDecodeError: It is not TOML.
        SettingsError: A setting is bad.
    """
    values = _renamed(tomllib.loads(text), "-", "_")
    if definition is None or definition.path is None:
        definition = builtin()
    elif isinstance(values.get("experiment"), str):
        del values["experiment"]  # where the definition comes from
    return definition.config(**values)


def to_toml(config: Config) -> str:
    """Return the settings as a TOML text that `read` understands, without the unset.

    A run keeps the source of an experiment in its folder, where the text names it.
    """
    exclude = {"resume", "allow_changes", "trust_code"}
    values = config.model_dump(mode="json", exclude_none=True, exclude=exclude)
    path = definition_of(config).path
    named = {"experiment": f"{FOLDER}/{path.name}"} if path else {}
    return tomli_w.dumps(named | _renamed(values, "_", "-"))


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
        for key in keys(type(config))
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
    return type(config)(**nested)


def free_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> set[str]:
    """Return the keys of settings that a resumed run may change freely.

    They are not part of what is computed. Nor are the epochs, which say when it ends,
    unless the learning rate goes by the number of steps.

    Args:
        before: The settings of the run, as `flatten` gives them.
        now: Those that it would be continued with.
    """
    sections = ("log.", "checkpoint.", "instruments.")
    free = {"device", "threads", "data.root", "data.workers"}
    if before["schedule.name"] == now["schedule.name"] == "constant":
        free.add("epochs")
    return {key for key in now if key in free or key.startswith(sections)}
