"""The cache of a data set: what it gives is whole, or made anew."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from harness.files import contents, flipped
from harness.small_sets import FILES, Small, equal, random_examples

from minitrain.datasets import cache, digits
from minitrain.datasets import mnist as source


def forbid(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Make every later import of the module fail."""
    monkeypatch.setitem(sys.modules, module, None)


def test_small_set_is_read_then_cached(small: Small, monkeypatch: pytest.MonkeyPatch):
    """The cache needs neither the raw files nor a second for importing torchvision."""
    assert equal(source.mnist(small.root), small.examples)
    for file in FILES:
        (small.raw / file).unlink()
    forbid(monkeypatch, "torchvision")
    assert equal(source.mnist(small.root), small.examples)


def test_damaged_cache_is_made_anew_wherever_a_byte_flips(small: Small):
    source.mnist(small.root)
    whole = small.cache.read_bytes()
    noticed = 0
    for position in range(0, len(whole), len(whole) // 100):
        damaged = flipped(whole, 8 * position)
        small.cache.write_bytes(damaged)
        assert equal(source.mnist(small.root), small.examples), position
        noticed += small.cache.read_bytes() != damaged
    assert noticed > 50  # the others are in parts of the file that hold no data


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
def test_damaged_cache_is_made_anew(
    small: Small, damage: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
):
    source.mnist(small.root)
    whole = small.cache.read_bytes()
    assert damage(whole) != whole
    small.cache.write_bytes(damage(whole))
    assert equal(source.mnist(small.root), small.examples)
    forbid(monkeypatch, "torchvision")
    assert equal(source.mnist(small.root), small.examples)


def test_cache_of_other_tensors_is_made_anew(small: Small):
    """Its hash is that of the right tensors, its tensors are whole but others."""
    source.mnist(small.root)
    kept = torch.load(small.cache, weights_only=True)
    kept["train_labels"] = kept["train_labels"].roll(1)
    torch.save(kept, small.cache)
    assert equal(source.mnist(small.root), small.examples)


def test_root_that_takes_no_cache_will_do(small: Small):
    small.cache.parent.write_text("a file in the place of the folder")
    before = contents(small.root)
    assert equal(source.mnist(small.root), small.examples)
    assert contents(small.root) == before


def test_full_disk_will_do(tmp_path: Path, quick_digits: None):
    resource = pytest.importorskip("resource", reason="limits are POSIX's")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        drawn = digits.digits(tmp_path, 200, 50)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert equal(drawn, (random_examples(200, seed=0), random_examples(50, seed=1)))
    assert contents(tmp_path) == {}


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
