"""The keyword arguments of a function as settings: names, types, ranges and help."""

import inspect
import re
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import Field, PydanticUserError, create_model

from minitrain.experiment.settings import PrintablePath, Settings
from minitrain.system.errors import SettingsError

S = TypeVar("S", bound=Settings)

PLAIN = (bool, int, float, str, type(None))
"""What can be a setting, besides paths, choices and tuples."""


def section(
    base: type[S],
    function: Callable[..., Any] | None = None,
    num_given: int = 0,
    defaults: Mapping[str, Any] | None = None,
) -> type[S]:
    """Return a section of the settings, with a function's keyword arguments added.

    Args:
        base: The settings that the section has in any case.
        function: Its arguments, but the first ones, become settings.
        num_given: How many arguments are given by position, and are not settings.
        defaults: Values by name, in the place of the defaults of base and function.

    Raises:
        SettingsError: An argument cannot be a setting.
    """
    if function is None and not defaults:
        return base
    fields = {} if function is None else _settings_of(function, num_given)
    for name in fields:
        if name in base.model_fields:
            raise _error(
                function, name, "there is a setting of this name; choose another"
            )
    try:
        made = create_model(base.__name__, __base__=base, **fields)
    except (PydanticUserError, TypeError, NameError) as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(f"{_place(function)}: no settings: {reason}") from error
    changed: dict[str, Any] = {
        name: (
            made.model_fields[name].rebuild_annotation(),
            Field(value, description=made.model_fields[name].description),
        )
        for name, value in (defaults or {}).items()
        if name in made.model_fields
    }
    return create_model(base.__name__, __base__=made, **changed) if changed else made


def _settings_of(function: Callable[..., Any], num_given: int) -> dict[str, Any]:
    """Return the fields of a pydantic model, one for each keyword argument."""
    help_of = _read_help(inspect.getdoc(function) or "")
    fields = {}
    parameters = [*inspect.signature(function).parameters.values()][num_given:]
    for parameter in parameters:
        name, default = parameter.name, parameter.default
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise _error(function, name, "each setting needs a name of its own")
        if default is parameter.empty:
            raise _error(function, name, f"it has no default: write {name}=...")
        annotation = parameter.annotation
        if isinstance(annotation, str):  # from __future__ import annotations
            try:
                annotation = eval(annotation, function.__globals__)
            except Exception as error:
                raise _error(function, name, f"its type is unknown: {error}") from None
        if annotation is parameter.empty:
            annotation = _type_of(default)
        fields[name] = (
            _checked(annotation, function, name),
            Field(default, description=help_of.get(name), validate_default=True),
        )
    return fields


def _checked(annotation: Any, function: Callable[..., Any], name: str) -> Any:
    """Return the type of a setting as pydantic has to read it.

    Raises:
        SettingsError: No setting can have it.
    """
    if get_origin(annotation) is Annotated:
        inner, *rules = get_args(annotation)
        return Annotated[(_checked(inner, function, name), *rules)]
    if annotation in PLAIN or annotation is None or annotation is PrintablePath:
        return annotation
    if annotation is Path:
        return PrintablePath
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return annotation
    if origin in (Union, types.UnionType):
        return Union[tuple(_checked(each, function, name) for each in inner)]  # noqa: UP007
    if origin is tuple and inner:
        parts = [p if p is ... else _checked(p, function, name) for p in inner]
        # TOML has lists, and no tuples.
        return Annotated[tuple[tuple(parts)], Field(strict=False)]
    raise _error(
        function,
        name,
        f"{annotation} cannot be a setting: use bool, int, float, str, Path, Literal, "
        "a tuple such as tuple[int, ...], or one of these | None",
    )


def _type_of(default: Any) -> Any:
    """Return the type of a setting that was given none."""
    if isinstance(default, tuple) and default:
        return tuple[(type(default[0]), ...)]
    return type(default)


def _read_help(text: str) -> dict[str, str]:
    """Return what a docstring in Google's form says of each argument."""
    _, _, after = text.partition("Args:\n")
    part = re.split(r"\n(?=\S)", after, maxsplit=1)[0]
    found = re.findall(r"^ {4}(\w+)(?: \([^)]*\))?: ((?:.|\n {5,})+)", part, re.M)
    return {name: " ".join(words.split()) for name, words in found}


def _error(function: Any, name: str, reason: str) -> SettingsError:
    return SettingsError(f"{_place(function)}, argument {name}: {reason}")


def _place(function: Any) -> str:
    """Return where a function stands, for messages."""
    if function is None:
        return "settings"
    code = function.__code__
    return f"{code.co_filename}, line {code.co_firstlineno}, {function.__name__}(...)"
