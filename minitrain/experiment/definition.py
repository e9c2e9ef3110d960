"""An experiment as a Python file defines it: its functions, and settings made of them.

The file has `data(...)` and `model(...)`, and optionally `loss`, `metrics`, `draw`,
`optimizer` and `SETTINGS`. Nothing is registered or inherited. The keyword arguments of
data, model, loss and optimizer are settings of these sections.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import create_model

from minitrain.experiment.settings import (
    Config,
    DataSettings,
    LossSettings,
    ModelSettings,
    OptimizerSettings,
    Settings,
    SGDSettings,
    keys,
)
from minitrain.experiment.signature import section
from minitrain.system.errors import SettingsError, did_you_mean

NAMES = ("data", "model", "loss", "metrics", "draw", "optimizer", "SETTINGS")
"""What an experiment's file may define."""


@dataclass(frozen=True, kw_only=True)
class Definition:
    """The functions of an experiment."""

    name: str
    about: str
    """What the file says of itself."""
    data: Callable[..., Any]
    """data(...) -> Data"""
    model: Callable[..., Any]
    """model(...) -> nn.Module"""
    loss: Callable[..., Any] | None = None
    """loss(outputs, targets, ...), the mean over the samples"""
    metrics: Callable[..., Any] | None = None
    """metrics(outputs, targets): by name a number for each sample, shape (N,)"""
    draw: Callable[..., Any] | None = None
    """draw(model, data): pictures by name"""
    optimizer: Callable[..., Any] | None = None
    """optimizer(parameters, ...) -> torch.optim.Optimizer"""
    defaults: Mapping[str, Any]
    """SETTINGS: defaults by their keys on the command line."""
    path: Path | None = None
    """The file; None for the built-in experiment."""
    source: Mapping[str, str]
    """The file and what it imported from its folder: texts by their relative paths."""

    @functools.cached_property
    def config(self) -> type[Config]:
        """The settings of the experiment, as a subclass of `Config`.

        Raises:
            SettingsError: An argument of a function cannot be a setting, or a default
                breaks a rule.
        """
        given = _nest(self.defaults)
        own = SGDSettings if self.optimizer is None else OptimizerSettings
        kinds = {
            "data": section(DataSettings, self.data, 0, given.get("data")),
            "model": section(ModelSettings, self.model, 0, given.get("model")),
            "loss": section(LossSettings, self.loss, 2, given.get("loss")),
            "optimizer": section(own, self.optimizer, 1, given.get("optimizer")),
        }
        for name, field in Config.model_fields.items():
            kind = field.annotation
            if name in kinds or not isinstance(kind, type):
                continue
            if issubclass(kind, Settings) and isinstance(given.get(name), dict):
                kinds[name] = section(kind, defaults=given[name])
        top = {k: v for k, v in given.items() if not isinstance(v, Mapping)}
        plain = section(Config, defaults=top)
        fields: dict[str, Any] = {name: (kind, kind()) for name, kind in kinds.items()}
        made = create_model("Config", __base__=plain, **fields)
        made.definition = self
        known = keys(made)
        for key in self.defaults:
            if (word := key.replace("_", "-")) not in known:
                hint = did_you_mean(word, known)
                raise SettingsError(f"SETTINGS: there is no setting {key!r}{hint}")
        made(**given)  # a default is checked like any other value
        return made


def define(
    module: ModuleType, path: Path | None, source: Mapping[str, str]
) -> Definition:
    """Return the experiment that a module defines.

    Raises:
        SettingsError: A function is missing or is not one, or `SETTINGS` is not a
            dictionary.
    """
    place = path or module.__name__
    found: dict[str, Any] = {name: getattr(module, name, None) for name in NAMES}
    defaults = found.pop("SETTINGS") or {}
    for name in ("data", "model"):
        if found[name] is None:
            raise SettingsError(
                f"{place} defines no function {name}(...): an experiment has data(...) "
                "and model(...)"
            )
    for name, function in found.items():
        if function is not None and not hasattr(function, "__code__"):
            raise SettingsError(f"{place}: {name} is not a function written with def")
    if not isinstance(defaults, dict) or not all(isinstance(k, str) for k in defaults):
        raise SettingsError(f"{place}: SETTINGS is not a dictionary of keys and values")
    for name in vars(module):
        near = get_close_matches(name, NAMES, 1, 0.75)
        if near and name not in NAMES and module.__dict__.get(near[0]) is None:
            is_own = getattr(vars(module)[name], "__module__", None) == module.__name__
            if is_own:
                raise SettingsError(
                    f"{place} defines {name}(...), and no {near[0]}(...): if it is not "
                    "meant, give it another name"
                )
    name = path.stem if path else module.__name__.rpartition(".")[2]
    about = inspect.getdoc(module) or ""
    return Definition(
        name=name, about=about, defaults=defaults, path=path, source=source, **found
    )


def _nest(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"a": {"b": 1}} of {"a.b": 1}."""
    nested: dict[str, Any] = {}
    for key, value in defaults.items():
        *path, name = key.replace("-", "_").split(".")
        inner = nested
        for part in path:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise SettingsError(f"SETTINGS: {key!r} is a section and a value")
        inner[name] = value
    return nested


@functools.cache
def builtin() -> Definition:
    """Return the experiment that a run trains where none is named."""
    from minitrain.experiment import builtin as module

    return define(module, None, {})


def definition_of(config: Config) -> Definition:
    """Return the experiment that these are the settings of."""
    return type(config).definition or builtin()
