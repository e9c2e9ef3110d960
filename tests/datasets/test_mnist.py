"""Data sets: the right bytes or an error. Batches: functions of seed and epoch."""

import dataclasses
import gzip
import hashlib
import http.server
import itertools
import random
import struct
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy
import pytest
import torch
import torchvision
from torch import Tensor

from minitrain.batches import Batches
from minitrain.datasets import cache, digits
from minitrain.datasets import mnist as source
from minitrain.datasets.dataset import Dataset, Examples
from minitrain.datasets.digits import draw_digits
from minitrain.experiment import builtin, runner
from minitrain.experiment.settings import Config, DataSettings
from minitrain.system.errors import DataError
from minitrain.system.terminal import exit_code

FILES = list(source.SHA256["MNIST"])
NOWHERE = "http://127.0.0.1:1/"  # nothing listens at port 1


def random_examples(num: int, seed: int) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (num, 28, 28), generator=generator, dtype=torch.uint8)
    return Examples(images, torch.randint(10, (num,), generator=generator))


def write_idx(path: Path, values: Tensor) -> None:
    header = struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape)
    path.write_bytes(gzip.compress(header + values.to(torch.uint8).numpy().tobytes()))


def read_idx(path: Path) -> Tensor:
    content = gzip.decompress(path.read_bytes())
    magic = 0x800 + content[3]
    found, *shape = struct.unpack_from(f">{1 + content[3]}I", content)
    assert found == magic
    values = numpy.frombuffer(content, numpy.uint8, offset=4 + 4 * len(shape))
    return torch.tensor(values).view(shape)


def read_folder(folder: Path) -> tuple[Examples, Examples]:
    """Training and test examples, read independently of the module under test."""
    tensors = [read_idx(folder / file) for file in FILES]
    return Examples(tensors[0], tensors[1].long()), Examples(
        tensors[2], tensors[3].long()
    )


def equal(dataset: Dataset, expected: tuple[Examples, Examples]) -> bool:
    tensors = [*dataset.train, *dataset.test]
    return all(
        torch.equal(mine, theirs) and mine.dtype == theirs.dtype
        for mine, theirs in zip(tensors, itertools.chain(*expected), strict=True)
    )


def contents(folder: Path) -> dict[Path, bytes]:
    files = [f for f in folder.rglob("*") if f.is_file() and f.name != ".lock"]
    return {file: file.read_bytes() for file in files}


def forbid(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Make every later import of the module fail."""
    monkeypatch.setitem(sys.modules, module, None)


@dataclasses.dataclass
class Small:
    """A small data set in the place of a real one, in files of the same form."""

    root: Path
    source: str = "MNIST"

    def __post_init__(self) -> None:
        self.raw = self.root / self.source / "raw"
        self.cache = self.root / "minitrain" / "mnist.pt"
        self.raw.mkdir(parents=True)
        self.examples = random_examples(6, seed=0), random_examples(4, seed=1)
        for file, values in zip(FILES, itertools.chain(*self.examples), strict=True):
            write_idx(self.raw / file, values)

    def sha256(self) -> dict[str, str]:
        return {
            f: hashlib.sha256((self.raw / f).read_bytes()).hexdigest() for f in FILES
        }


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    small = Small(tmp_path / "data")
    monkeypatch.setitem(source.SHA256, "MNIST", small.sha256())
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [NOWHERE])
    return small


@pytest.fixture
def quick_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other images in the place of digits, which take a second to draw."""
    monkeypatch.setattr(digits, "draw_digits", random_examples)


# Batches


def batches_of(num: int, batch_size: int, seed: int | None = 0) -> Batches:
    return Batches(torch.arange(num) * 10, torch.arange(num), batch_size, seed)


def samples(batches: Batches, epoch: int) -> list[int]:
    inputs, targets = zip(*batches.epoch(epoch), strict=True)
    assert torch.equal(torch.cat(inputs), torch.cat(targets) * 10)  # still pairs
    return torch.cat(targets).tolist()


@pytest.mark.parametrize("seed", [0, 7, None])
@pytest.mark.parametrize(
    ("num", "batch_size", "sizes"),
    [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (5, 5, [5]), (3, 1, [1, 1, 1]), (1, 1, [1])],
)
def test_every_sample_once_in_each_epoch(
    num: int, batch_size: int, sizes: list[int], seed: int | None
):
    batches = batches_of(num, batch_size, seed)
    for epoch in (1, 2, 3):
        assert sorted(samples(batches, epoch)) == list(range(num))
        assert [len(targets) for _, targets in batches.epoch(epoch)] == sizes
    assert len(batches) == len(sizes)


def test_order_depends_on_seed_and_epoch_alone():
    """Resuming in any epoch, in a new process, must find the same order."""
    batches = batches_of(100, 7)
    third = samples(batches, 3)
    half_read = batches.epoch(2)
    next(half_read)
    assert samples(batches, 3) == third == samples(batches_of(100, 30), 3)
    assert batches.order(3).tolist() == third
    assert len(list(half_read)) == len(batches) - 1


def test_every_seed_and_epoch_has_its_own_order():
    numbers = (0, 1, 2, 11, 12, 2**63 - 1)  # 1 and 12, 11 and 2: no mere joining
    orders = {
        tuple(samples(batches_of(100, 100, seed), epoch))
        for seed in numbers
        for epoch in numbers
    }
    assert len(orders) == len(numbers) ** 2 and tuple(range(100)) not in orders


def test_without_a_seed_the_order_is_that_of_the_tensors():
    assert samples(batches_of(10, 4, None), 1) == list(range(10))
    assert samples(batches_of(10, 4, None), 2) == list(range(10))


def test_order_neither_reads_nor_changes_global_random_states():
    def states() -> list[object]:
        return [
            torch.get_rng_state().tolist(),
            random.getstate(),
            str(numpy.random.get_state()),
        ]

    before = samples(batches_of(20, 6), 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        kept = states()
        assert samples(batches_of(20, 6), 1) == before
        assert states() == kept


@pytest.mark.parametrize("batch_size", [0, -1, 11])
def test_impossible_batch_sizes_are_refused(batch_size: int):
    with pytest.raises(ValueError, match=f"batch_size = {batch_size}: .*, 10$"):
        batches_of(10, batch_size)


def test_inputs_without_targets_are_refused():
    with pytest.raises(ValueError, match="3 inputs and 2 targets"):
        Batches(torch.zeros(3), torch.zeros(2), batch_size=1)


# Dataset


def test_inputs_have_mean_0_and_standard_deviation_1_over_the_training_set():
    train, test = random_examples(50, seed=0), random_examples(20, seed=1)
    train.images[:, :14] //= 3  # not all random: the mean is not simply 127.5
    dataset = Dataset("random", tuple("0123456789"), train, test)
    originals = train.images.clone(), test.images.clone()

    std, mean = torch.std_mean(train.images.double(), correction=0)
    assert dataset.mean_std == pytest.approx((mean.item(), std.item()), rel=1e-12)
    inputs = dataset.inputs(train)
    assert inputs.shape == (50, 1, 28, 28) and inputs.dtype == torch.float32
    torch.testing.assert_close(
        torch.std_mean(inputs.double(), correction=0),
        (torch.tensor(1.0).double(), torch.tensor(0.0).double()),
        rtol=0,
        atol=1e-6,  # inputs are rounded to float32
    )
    expected = (test.images.double() - mean) / std  # the training set's, not its own
    torch.testing.assert_close(dataset.inputs(test), expected.unsqueeze(1).float())
    assert torch.equal(train.images, originals[0])
    assert torch.equal(test.images, originals[1])


# MNIST itself


@pytest.fixture(scope="module")
def fresh_root(mnist_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with MNIST's files and, at first, without a cache."""
    root = tmp_path_factory.mktemp("data")
    (root / "MNIST").symlink_to(mnist_root.resolve() / "MNIST")
    return root


@pytest.fixture(scope="module")
def mnist(fresh_root: Path) -> Dataset:
    return source.mnist(fresh_root)


def test_mnist_is_mnist(mnist: Dataset):
    assert mnist.name == "mnist" and mnist.classes == tuple("0123456789")
    assert mnist.train.images.shape == (60_000, 28, 28)
    assert mnist.test.images.shape == (10_000, 28, 28)
    assert mnist.train.labels.bincount().tolist() == (
        [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    )
    assert mnist.test.labels.bincount().tolist() == (
        [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    )
    mean, std = (value / 255 for value in mnist.mean_std)
    assert (round(mean, 4), round(std, 4)) == (0.1307, 0.3081)  # as everybody quotes


def test_mnist_is_in_the_files_and_then_in_the_cache(
    mnist: Dataset, fresh_root: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = read_folder(fresh_root / "MNIST" / "raw")
    assert equal(mnist, expected)
    forbid(monkeypatch, "torchvision")
    assert equal(source.mnist(fresh_root), expected)


def test_mnist_files_are_those_that_torchvision_knows(mnist_root: Path):
    for file, md5 in torchvision.datasets.MNIST.resources:
        content = (mnist_root / "MNIST" / "raw" / file).read_bytes()
        assert hashlib.md5(content).hexdigest() == md5
        assert hashlib.sha256(content).hexdigest() == source.SHA256["MNIST"][file]


# Fashion-MNIST, which is not at hand: its files' names and its wiring


def test_fashion_mnist_is_wired_like_mnist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    reader = torchvision.datasets.FashionMNIST
    hashes = source.SHA256["FashionMNIST"]
    assert list(hashes) == [file for file, _ in reader.resources] == FILES
    assert not {*hashes.values()} & {*source.SHA256["MNIST"].values()}
    small = Small(tmp_path, source="FashionMNIST")
    monkeypatch.setitem(source.SHA256, "FashionMNIST", small.sha256())
    dataset = source.fashion_mnist(tmp_path)
    assert dataset.name == "fashion-mnist" and equal(dataset, small.examples)
    for mine, theirs in zip(dataset.classes, reader.classes, strict=True):
        assert mine.lower() in theirs.lower()


# From files to tensors, and through the cache


def test_small_set_is_read_then_cached(small: Small, monkeypatch: pytest.MonkeyPatch):
    """The cache needs neither the raw files nor a second for importing torchvision."""
    assert equal(source.mnist(small.root), small.examples)
    for file in FILES:
        (small.raw / file).unlink()
    forbid(monkeypatch, "torchvision")
    assert equal(source.mnist(small.root), small.examples)


def test_unpacked_files_beside_are_not_read(small: Small):
    """Torchvision alone would read them and trust them."""
    for file in FILES:
        other = bytearray(gzip.decompress((small.raw / file).read_bytes()))
        other[-1] ^= 1
        (small.raw / file).with_suffix("").write_bytes(other)
    torchvisions = torchvision.datasets.MNIST(small.root, train=True).targets
    assert not torch.equal(torchvisions, small.examples[0].labels)
    before = contents(small.raw)
    assert equal(source.mnist(small.root), small.examples)
    assert contents(small.raw) == before


def flipped(content: bytes, position: int) -> bytes:
    return (
        content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :]
    )


def test_damaged_cache_is_made_anew_wherever_a_byte_flips(small: Small):
    source.mnist(small.root)
    whole = small.cache.read_bytes()
    noticed = 0
    for position in range(0, len(whole), len(whole) // 100):
        damaged = flipped(whole, position)
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


# Files that cannot be had


def rewrite(file: int, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(raw: Path) -> None:
        path = raw / FILES[file]
        path.write_bytes(change(path.read_bytes()))

    return damage


def repack(file: int, change: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    """A file in perfect order that says something else: torchvision trusts those."""

    def damage(raw: Path) -> None:
        write_idx(raw / FILES[file], change(read_idx(raw / FILES[file])))

    return damage


def swap(raw: Path) -> None:
    for train, test in ((0, 2), (1, 3)):
        kept = (raw / FILES[train]).read_bytes()
        (raw / FILES[train]).write_bytes((raw / FILES[test]).read_bytes())
        (raw / FILES[test]).write_bytes(kept)


def shrink(raw: Path) -> None:
    for file in range(4):
        repack(file, lambda values: values[:3])(raw)


DOCTORED: dict[str, tuple[Callable[[Path], None], int]] = {
    "truncated": (rewrite(2, lambda c: c[:-1]), 2),
    "one bit flipped": (rewrite(2, lambda c: flipped(c, len(c) // 2)), 2),
    "one bit flipped where it has no effect": (rewrite(2, lambda c: flipped(c, 4)), 2),
    "a smaller set": (shrink, 0),
    "fewer labels than images": (repack(1, lambda labels: labels[:-1]), 1),
    "a label of 200": (repack(1, lambda labels: labels.clamp(min=200)), 1),
    "bytes added": (rewrite(3, lambda c: c + b"x"), 3),
    "training and test set swapped": (swap, 0),
    "another set": (repack(0, lambda images: 255 - images), 0),
    "empty": (rewrite(2, lambda c: b""), 2),
}


@pytest.mark.parametrize("doctored", DOCTORED)
def test_doctored_files_are_an_error_and_left_alone(
    small: Small, doctored: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    damage, file = DOCTORED[doctored]
    damage(small.raw)
    before = contents(tmp_path)
    settings = Config(
        data=DataSettings(name="mnist", root=small.root), run_dir=tmp_path / "run"
    )
    assert exit_code(lambda: int(runner.run(settings) is None)) == 3
    out, error = capsys.readouterr()
    assert out == "" and str(small.raw / FILES[file]) in error
    assert source.SHA256["MNIST"][FILES[file]] in error
    assert contents(tmp_path) == before and not (tmp_path / "run").exists()


def test_absent_files_are_an_error_that_tells_the_way_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    mirrors = [NOWHERE + "first/", NOWHERE + "second/"]
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", mirrors)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(DataError) as caught:
        builtin.load_data("mnist", tmp_path)
    text = str(caught.value)
    assert all(f"{mirror}{FILES[0]}: " in text for mirror in mirrors)
    assert str(tmp_path / "MNIST" / "raw") in text
    assert contents(tmp_path) == {}


def test_absent_files_are_downloaded_to_where_torchvision_keeps_them(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    serve = partial(Quiet, directory=small.raw)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        mirrors = [NOWHERE, f"http://127.0.0.1:{server.server_port}/"]
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", mirrors)
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        dataset = source.mnist(tmp_path / "other")
        server.shutdown()
    assert equal(dataset, small.examples)
    raw = tmp_path / "other" / "MNIST" / "raw"
    assert {f.name: b for f, b in contents(raw).items()} == {
        f.name: b for f, b in contents(small.raw).items()
    }


# Drawn digits, and the names


def test_digits_are_drawn_once_and_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = (
        Examples(*draw_digits(200, seed=0)),
        Examples(*draw_digits(50, seed=1)),
    )
    dataset = digits.digits(tmp_path, 200, 50)
    assert dataset.name == "digits" and dataset.classes == tuple("0123456789")
    assert equal(dataset, expected)
    monkeypatch.setattr(
        digits, "draw_digits", lambda *a, **k: pytest.fail("drawn again")
    )
    assert equal(digits.digits(tmp_path, 200, 50), expected)


def test_digits_of_other_numbers_have_a_cache_of_their_own(
    tmp_path: Path, quick_digits: None
):
    digits.digits(tmp_path, 20, 10)
    expected = random_examples(10, seed=0), random_examples(20, seed=1)
    assert equal(digits.digits(tmp_path, 10, 20), expected)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "digits"])
@pytest.mark.parametrize("given", [True, False])
def test_load_finds_the_set_by_name_in_the_root_or_else_the_default_root(
    name: str, given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert builtin.LOADERS[name].__name__ == name.replace("-", "_")
    monkeypatch.setenv("MINITRAIN_DATA", str(tmp_path / "default"))
    monkeypatch.setitem(builtin.LOADERS, name, lambda root: root)
    root = tmp_path / "given" if given else None
    assert builtin.load_data(name, root) == (root or tmp_path / "default")


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
