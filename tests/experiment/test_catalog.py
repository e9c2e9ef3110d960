"""The experiments that come with minitrain, found by name."""

from pathlib import Path

import pytest

from minitrain.experiment import catalog
from minitrain.experiment.catalog import find, shipped
from minitrain.experiment.reading import parse, read
from minitrain.system.errors import SettingsError

FOLDER = Path(__file__).parents[2] / "experiments"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_those_of_a_clone_are_all_there() -> None:
    programs = {FOLDER / "gan.py", FOLDER / "fsdp.py"}  # with loops of their own
    files = {path for path in FOLDER.iterdir() if path.suffix in (".toml", ".py")}
    files -= programs
    assert set(shipped().values()) == files
    assert {path.suffix for path in files} == {".toml", ".py"}
    assert parse(["mnist-cnn"]) == read(FOLDER / "mnist-cnn.toml")
    assert parse(["mnist-cnn"]) != parse([])


def test_those_of_an_installed_package_lie_inside_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "site-packages" / "minitrain" / "experiments"
    folder.mkdir(parents=True)
    (folder / "mnist-cnn.toml").touch()
    init = folder.parent / "__init__.py"
    monkeypatch.setattr(catalog.minitrain, "__file__", str(init))
    assert find("mnist-cnn") == folder / "mnist-cnn.toml"


def test_a_python_file_has_a_name_like_any_other() -> None:
    assert find("spirals") == FOLDER / "spirals.py"
    config = parse(["spirals", "--data.turns", "2"])
    assert (config.data.turns, config.epochs) == (2, 100)


def test_two_files_of_one_name_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "minitrain" / "experiments"
    folder.mkdir(parents=True)
    for name in ("one.py", "one.toml"):
        (folder / name).write_text("\ndef data(): ...\n")
    monkeypatch.setattr(catalog.minitrain, "__file__", str(folder.parent / "x.py"))
    with pytest.raises(SettingsError, match=r"one\.py and one\.toml have one name"):
        find("other")


@pytest.mark.parametrize("path", ["own.toml", "./own", "folder/own", "own.py"])
def test_a_path_is_a_path(path: str) -> None:
    assert find(path) == Path(path)


def test_a_name_means_the_same_in_every_folder(tmp_path: Path) -> None:
    for name in ("mnist-cnn", "mnist-cnn.toml", "other"):
        (tmp_path / name).write_text("epochs = 77\n")
    assert parse(["mnist-cnn"]).epochs != 77
    assert parse(["mnist-cnn.toml"]).epochs == 77
    assert parse(["./mnist-cnn"]).epochs == 77
    with pytest.raises(SettingsError, match=r"such as other\.toml or \./other"):
        find("other")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("mnist-cn", "there is no experiment 'mnist-cn'; did you mean mnist-cnn?"),
        ("zzz", "there is no experiment 'zzz'\nThese come with minitrain: "),
        ("", "there is no experiment ''"),
        ("experiments/mnist-cnn.toml", "with minitrain is called mnist-cnn"),
        ("mnist-cnn.toml", "cannot read mnist-cnn.toml: there is no such file"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(name: str, told: str) -> None:
    with pytest.raises(SettingsError) as caught:
        find(name)
    assert told in str(caught.value)
