"""The package from outside: its public names, and its version."""

import rlcompleter
from importlib import import_module
from types import ModuleType

import pytest

import minitrain

ROOMS = ["", ".cli", ".experiment", ".instruments", ".runs"]
lazy_package = pytest.mark.parametrize("room", ROOMS)


def package(room: str) -> ModuleType:
    return import_module(f"minitrain{room}")


@lazy_package
def test_public_names_are_there_and_no_others_are_shown(room: str) -> None:
    found = package(room)
    assert dir(found) == sorted(found.__all__) and found.__all__
    for name in found.__all__:
        home = getattr(found, name).__module__
        assert home.startswith("minitrain."), f"{name} is at home in {home}"


@lazy_package
def test_completion_offers_the_public_names(room: str) -> None:
    found = package(room)
    offered = rlcompleter.Completer({"package": found}).attr_matches("package.")
    names = {name.removeprefix("package.").rstrip("()") for name in offered}
    assert names == set(found.__all__)


@lazy_package
def test_other_names_are_refused(room: str) -> None:
    with pytest.raises(AttributeError, match=f"'minitrain{room}' has no .* 'SDG'"):
        _ = package(room).SDG


def test_the_version_is_a_public_string() -> None:
    assert [number.isdigit() for number in minitrain.__version__.split(".")] == [1] * 3
