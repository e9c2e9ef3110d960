"""The experiments that come with minitrain, by name."""

from pathlib import Path

import minitrain
from minitrain.system.errors import SettingsError, did_you_mean


def find(experiment: str) -> Path:
    """Return the file of an experiment.

    Args:
        experiment: The path of a file, which has an extension or a slash, or else the
            name of an experiment that comes with minitrain. What it means does not
            depend on what lies in the working directory.

    Raises:
        SettingsError: There is no file and no experiment of this name.
    """
    known, path = shipped(), Path(experiment)
    if experiment in known:
        return known[experiment]
    if path.suffix or path.name != experiment:
        if path.stem in known and not path.exists():
            raise SettingsError(
                f"cannot read {path}: there is no such file; the experiment that comes "
                f"with minitrain is called {path.stem}"
            )
        return path
    hint = did_you_mean(experiment, [*known])
    raise SettingsError(
        f"there is no experiment {experiment!r}{hint}\nThese come with minitrain: "
        f"{', '.join(known)}.\nA file of your own is given by a path with an extension "
        f"or a slash, such as {experiment}.toml or ./{experiment}."
    )


def shipped() -> dict[str, Path]:
    """Return the files of all experiments that come with minitrain, by name.

    A Python file is an experiment if it defines `data`, and else a program.

    Raises:
        SettingsError: Two of them have one name.
    """
    package = Path(minitrain.__file__).parent
    installed, cloned = package / "experiments", package.parent / "experiments"
    folder = installed if installed.is_dir() else cloned
    named: dict[str, Path] = {}
    files = [path for path in folder.glob("*.py") if "\ndef data(" in path.read_text()]
    for path in sorted([*folder.glob("*.toml"), *files]):
        if path.stem in named:
            raise SettingsError(
                f"{named[path.stem]} and {path.name} have one name: rename one of them"
            )
        named[path.stem] = path
    return named
