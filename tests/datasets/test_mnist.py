"""MNIST and Fashion-MNIST: exactly the published files, or an error."""

import gzip
import hashlib
import http.server
import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from harness.files import contents, flipped
from harness.small_sets import (
    FILES,
    Small,
    equal,
    random_examples,
    read_folder,
    read_idx,
    write_idx,
)
from torch import Tensor

from minitrain.datasets import mnist as source
from minitrain.datasets.dataset import Dataset
from minitrain.experiment import Config, builtin, runner
from minitrain.fingerprint import fingerprint
from minitrain.system.errors import DataError
from minitrain.system.terminal import exit_code

NOWHERE = "http://127.0.0.1:1/"  # nothing listens at port 1


# MNIST itself


@pytest.fixture(scope="module")
def mnist(mnist_root: Path) -> Dataset:
    return source.mnist(mnist_root)


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


def test_mnist_is_what_the_files_hold(mnist: Dataset, mnist_root: Path):
    assert equal(mnist, read_folder(mnist_root / "MNIST" / "raw"))


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


# From files to tensors


def test_files_that_are_there_are_read_without_torchvision(
    small: Small, monkeypatch: pytest.MonkeyPatch
):
    """To import it takes longer than to read them."""
    monkeypatch.setitem(sys.modules, "torchvision", None)
    before = contents(small.root)
    assert equal(source.mnist(small.root), small.examples)
    assert contents(small.root) == before


def test_no_copy_is_taken_for_the_files(small: Small):
    """Earlier versions kept one: whoever writes it can write its hash as well."""
    other = random_examples(100, seed=3)
    tensors = {
        f"{part}_{name}": tensor
        for part in ("train", "test")
        for name, tensor in other._asdict().items()
    }
    copy = small.root / "minitrain" / "mnist.pt"
    copy.parent.mkdir()
    torch.save({**tensors, "sha256": fingerprint(tensors)}, copy)
    before = contents(small.root)
    assert equal(source.mnist(small.root), small.examples)
    assert contents(small.root) == before
    (small.raw / FILES[0]).unlink()
    with pytest.raises(DataError, match="could not be downloaded"):
        source.mnist(small.root)


@pytest.mark.skipif(os.name != "posix", reason="pipes with names are POSIX's")
@pytest.mark.parametrize("file", [0, 3])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "giant"])
def test_what_is_no_file_is_an_error_and_not_waited_for(
    small: Small, kind: str, file: int
):
    path = small.raw / FILES[file]
    path.unlink()
    {
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "device": lambda: path.symlink_to("/dev/zero"),
        "giant": path.touch,
    }[kind]()
    if kind == "giant":
        os.truncate(path, 10**10)  # and no larger on the disk than a hole is
    reason = "100000000 bytes and more" if kind == "giant" else "not a regular file"
    with pytest.raises(DataError, match=f"{path}.*{reason}. It was left as it is"):
        source.mnist(small.root)
    assert os.path.lexists(path)


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
    "one bit flipped": (rewrite(2, lambda c: flipped(c, 4 * len(c))), 2),
    "one bit flipped where it has no effect": (rewrite(2, lambda c: flipped(c, 36)), 2),
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
        data=dict(name="mnist", root=small.root), run_dir=tmp_path / "run"
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
    assert contents(raw) == contents(small.raw)
