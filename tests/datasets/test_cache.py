"""The cache of a data set: what it gives is whole and right, or made anew."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.files import contents, flipped
from harness.small_sets import random_examples

from minitrain.datasets import cache, digits
from minitrain.datasets.cache import read_or_make
from minitrain.datasets.dataset import Examples
from minitrain.fingerprint import fingerprint
from minitrain.system.errors import DataError

EXAMPLES = random_examples(6, seed=0), random_examples(4, seed=1)


def read(path: Path, made: list[str]) -> tuple[Examples, Examples]:
    """The examples through the cache; `made` notes that they were made anew."""

    def make() -> tuple[Examples, Examples]:
        made.append("anew")
        return EXAMPLES

    return read_or_make(path, make, lambda train, test: len(train.labels) == 6)


def equal(found: tuple[Examples, Examples]) -> bool:
    pairs = zip([*found[0], *found[1]], [*EXAMPLES[0], *EXAMPLES[1]], strict=True)
    return all(torch.equal(mine, theirs) for mine, theirs in pairs)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A cache that is whole."""
    path = tmp_path / "minitrain" / "some.pt"
    read(path, [])
    return path


def test_it_is_made_once(path: Path):
    made: list[str] = []
    assert equal(read(path, made)) and made == []


def test_damage_is_mended_wherever_a_byte_flips(path: Path):
    whole, made = path.read_bytes(), []
    for position in range(0, len(whole), len(whole) // 100):
        path.write_bytes(flipped(whole, 8 * position))
        assert equal(read(path, made)), position
    assert len(made) > 50  # the others are in parts of the file that hold no data


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: b"",
        lambda whole: b"garbage" * 1000,
        lambda whole: whole.replace(b"sha256", b"sha257"),
    ],
    ids=["half", "empty", "garbage", "no hash"],
)
def test_damage_is_mended(path: Path, damage: Callable[[bytes], bytes]):
    whole, made = path.read_bytes(), []
    assert damage(whole) != whole
    path.write_bytes(damage(whole))
    assert equal(read(path, made)) and made == ["anew"]
    assert equal(read(path, made)) and made == ["anew"]


def test_other_tensors_under_the_old_hash_are_not_taken(path: Path):
    kept, made = torch.load(path, weights_only=True), []
    kept["train_labels"] = kept["train_labels"].roll(1)
    torch.save(kept, path)
    assert equal(read(path, made)) and made == ["anew"]


def keep(path: Path, **changes: object) -> None:
    """Replace tensors in a cache, under the hash of all that it holds then."""
    kept: dict[str, Any] = torch.load(path, weights_only=True)
    del kept["sha256"]
    kept |= changes
    torch.save({**kept, "sha256": fingerprint(kept)}, path)


@pytest.mark.parametrize(
    "changes",
    [
        {"train_labels": torch.arange(5)},
        {"train_labels": None},
        {"train_images": 7, "train_labels": 7},
    ],
    ids=["another number", "none", "numbers"],
)
def test_what_cannot_be_right_is_not_taken(path: Path, changes: dict[str, object]):
    """Whatever its types are: also where the question itself fails over them."""
    keep(path, **changes)
    made: list[str] = []
    assert equal(read(path, made)) and made == ["anew"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with few digits, drawn."""
    root = tmp_path_factory.mktemp("drawn")
    digits.digits(root, 60, 20)
    return root


LABELS = torch.arange(60) % 10
OTHER_DIGITS: dict[str, dict[str, object]] = {
    "a label of 200": {"train_labels": LABELS.clone().fill_(200)},
    "a label below 0": {"train_labels": LABELS - 1},
    "other labels": {"train_labels": LABELS},
    "more labels than images": {"train_labels": torch.arange(300) % 10},
    "fewer labels than images": {"train_labels": LABELS[:50]},
    "labels as floats": {"train_labels": LABELS.float()},
    "labels as bytes": {"train_labels": LABELS.to(torch.uint8)},
    "labels in a table": {"train_labels": LABELS.view(60, 1)},
    "one label": {"test_labels": torch.tensor(3)},
    "no images": {"train_images": torch.empty(0, 28, 28), "train_labels": LABELS[:0]},
    "images as floats": {"train_images": torch.zeros(60, 28, 28)},
    "images of another size": {
        "train_images": torch.zeros(60, 14, 14, dtype=torch.uint8)
    },
    "images with channels": {
        "test_images": torch.zeros(20, 1, 28, 28, dtype=torch.uint8)
    },
    "another set": random_examples(100, seed=2)._asdict(),
    "a list": {"train_labels": [1, 2, 3]},
    "nothing": {"train_labels": None},
    "text": {"test_images": "images"},
}


@pytest.mark.parametrize("other", OTHER_DIGITS)
def test_what_is_kept_as_digits_is_digits_or_drawn_anew(
    other: str, drawn: Path, tmp_path: Path
):
    """With any content under its own hash: a cache is not more than what it holds."""
    shutil.copytree(drawn, tmp_path, dirs_exist_ok=True)
    (path,) = (tmp_path / "minitrain").iterdir()
    names = {"images": "train_images", "labels": "train_labels"}
    keep(path, **{names.get(k, k): value for k, value in OTHER_DIGITS[other].items()})
    expected = digits.digits(drawn, 60, 20)
    for _ in range(2):
        found = digits.digits(tmp_path, 60, 20)
        for mine, theirs in zip(
            [*found.train, *found.test],
            [*expected.train, *expected.test],
            strict=True,
        ):
            assert torch.equal(mine, theirs) and mine.dtype == theirs.dtype


@pytest.mark.skipif(os.name != "posix", reason="pipes with names are POSIX's")
@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_not_waited_for(path: Path, kind: str):
    path.unlink()
    {
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "device": lambda: path.symlink_to("/dev/zero"),
    }[kind]()
    assert equal(read(path, []))


def test_a_root_that_takes_no_cache_will_do(tmp_path: Path):
    (tmp_path / "minitrain").write_text("a file in the place of the folder")
    before = contents(tmp_path)
    assert equal(read(tmp_path / "minitrain" / "some.pt", []))
    assert contents(tmp_path) == before


def test_a_full_disk_will_do(tmp_path: Path):
    resource = pytest.importorskip("resource", reason="limits are POSIX's")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, limits[1]))
    try:
        assert equal(read(tmp_path / "minitrain" / "some.pt", []))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(tmp_path) == {}


def test_what_a_kill_left_is_removed(path: Path):
    left = path.with_name(f".{path.name}.0123456789abcdef.part")
    mine = path.with_name(f".{path.name}.mine.part")
    for file in (left, mine):
        file.write_bytes(b"half")
    path.write_bytes(b"")
    assert equal(read(path, []))
    assert not left.exists() and mine.read_bytes() == b"half"


WRITING = """
import os, signal, sys
from pathlib import Path
from minitrain.datasets import cache, digits
from minitrain.system.signals import Stop

def interrupt(*arguments):
    os.kill(os.getpid(), signal.SIGINT)

Stop().install()
cache.torch.save = interrupt  # while the file is open
digits.digits(Path(sys.argv[1]), 20, 10)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_ctrl_c_while_it_is_written_leaves_nothing(tmp_path: Path):
    command = [sys.executable, "-c", WRITING, str(tmp_path)]
    assert subprocess.run(command).returncode == 130
    assert list((tmp_path / "minitrain").iterdir()) == []


# Where data sets are kept


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"MINITRAIN_DATA": "/data", "XDG_CACHE_HOME": "/cache"}, "/data"),
        ({"XDG_CACHE_HOME": "/cache"}, "/cache/minitrain"),
        ({"MINITRAIN_DATA": "", "XDG_CACHE_HOME": ""}, "/home/me/.cache/minitrain"),
        ({}, "/home/me/.cache/minitrain"),
    ],
)
def test_default_root(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
):
    for name in ("MINITRAIN_DATA", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    assert cache.default_root() == Path(expected)


def test_a_user_without_a_home_is_asked_for_a_folder(monkeypatch: pytest.MonkeyPatch):
    """As a user that the system does not know has none, where $HOME is not set."""
    for name in ("MINITRAIN_DATA", "XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(DataError, match=r"no home.*--data.root or .* MINITRAIN_DATA"):
        cache.default_root()
