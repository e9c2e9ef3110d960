"""The source of an experiment: loaded as a real module, kept with the run, compared."""

import difflib
import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from minitrain.experiment.definition import Definition, define
from minitrain.system.errors import SettingsError
from minitrain.system.files import make_folder, open_regular, replacing

FOLDER = "source"
"""Where a run directory keeps the source."""

PREFIX = "minitrain_experiment_"
"""Of the module's name, so that it hides no other module."""

_loaded: dict[str, ModuleType] = {}
"""What the last experiment brought into `sys.modules`."""


def load_file(path: Path) -> Definition:
    """Execute an experiment's file as a module, and return what it defines.

    Modules that it imports from its own folder belong to it: they are imported anew.

    Raises:
        SettingsError: It cannot be read or executed, or defines no experiment.
    """
    _read(path)  # a pipe or a device might never end
    path = path.resolve()
    for name, module in _loaded.items():
        if sys.modules.get(name) is module:
            del sys.modules[name]
    _loaded.clear()
    before = set(sys.modules)
    module = _execute(path)
    for name in set(sys.modules) - before:
        if _relative(sys.modules[name], path.parent):
            _loaded[name] = sys.modules[name]
    texts = {path.name: _read(path)}
    for each in _loaded.values():
        if name := _relative(each, path.parent):
            texts[name] = _read(path.parent / name)
    return define(module, path, dict(sorted(texts.items())))


def _execute(path: Path) -> ModuleType:
    name = PREFIX + path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SettingsError(f"{path} is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(path.parent)
    if folder in sys.path:
        sys.path.remove(folder)
    sys.path.insert(0, folder)  # as Python itself does for a script
    # Compiled files know a second at best: what was edited within one would be missed.
    writes_none, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise SettingsError(f"{path} cannot be loaded: {what_failed(error)}") from error
    finally:
        sys.dont_write_bytecode = writes_none
    return module


def what_failed(error: BaseException, path: Path | None = None) -> str:
    """Return an error of somebody's code with the last line that led to it.

    Args:
        error: The error.
        path: The file whose lines count, where one of them is there.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if path and frame.filename == str(path)]
    *_, last = own or frames or [None]
    where = f" ({last.filename}, line {last.lineno})" if last else ""
    if isinstance(error, SyntaxError):
        where = f" ({error.filename}, line {error.lineno})"
        return f"SyntaxError: {error.msg}{where}"
    return f"{type(error).__name__}: {error}{where}"


def _relative(module: object, folder: Path) -> str | None:
    """Return where in a folder the source of a module is, if it is there."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not file.endswith(".py"):
        return None
    path = Path(file)  # which is no path at all of what was made without a file
    if not path.is_absolute() or "site-packages" in path.parts:
        return None
    path = path.resolve()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else None


def _read(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return file.read().decode()
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not text: {error}") from None


def sha256(source: Mapping[str, str]) -> str:
    """Return the hash of a source, its files' names included; empty without any."""
    if not source:
        return ""
    digest = hashlib.sha256()
    for name, text in sorted(source.items()):
        data = text.encode()
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


def keep(source: Mapping[str, str], folder: Path) -> None:
    """Write a source into a run directory, each file complete or not at all."""
    for name, text in source.items():
        path = folder / FOLDER / name
        make_folder(path.parent)
        with replacing(path) as file:
            file.write(text.encode())


def kept(folder: Path, names: Mapping[str, str]) -> dict[str, str]:
    """Return what a run directory keeps of these files, as far as it can be read."""
    texts = {}
    for name in names:
        path = folder / FOLDER / name
        if path.is_file():
            texts[name] = _read(path)
    return texts


def difference(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Return how a source has changed, as a unified diff."""
    lines: list[str] = []
    for name in sorted(old.keys() | new.keys()):
        before, after = (
            texts.get(name, "").splitlines(keepends=True) for texts in (old, new)
        )
        labels = f"{name} of the run", f"{name} now"
        lines += difflib.unified_diff(before, after, *labels)
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)
