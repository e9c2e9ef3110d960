"""A checkpoint survives kills and faults of the disk, and is whole or refused."""

import errno
import hashlib
import io
import itertools
import os
import pickle
import random
import re
import shutil
import signal
import stat
import subprocess
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from harness.files import contents, flipped
from harness.runs import verified

import minitrain
from minitrain.fingerprint import fingerprint
from minitrain.runs import checkpoint
from minitrain.runs.checkpoint import find_all, find_newest, load, rotate, save
from minitrain.system import files
from minitrain.system.errors import CheckpointError

STATE = {
    "settings": 'name = "mlp"\n',
    "summary": {"best": -0.0, "rate": 0.1, "worst": float("inf"), "steps": 7},
    "model": {
        "float32": torch.tensor([1e-45, -0.0, float("nan"), 1 / 3]),
        "transposed": torch.arange(6.0, dtype=torch.float64).reshape(2, 3).T,
        "bfloat16": torch.tensor([[3.14]], dtype=torch.bfloat16),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(2**62),
        "empty": torch.empty(0, 5),
    },
    "optimizer": {"state": {0: {"momentum": None}}, "groups": [{"lr": 0.5}, {}]},
    "random": torch.arange(256, dtype=torch.uint8),
}
NUM_KILLS = int(os.environ.get("MINITRAIN_NUM_KILLS", "150"))
on_posix = pytest.mark.skipif(os.name != "posix", reason="needs fork, as POSIX has it")


@pytest.fixture
def unparsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage is found by the hash: what is damaged must never reach the parser."""
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("was parsed"))


def forge(folder: Path, data: bytes) -> Path:
    """A file with a correct hash, as an attacker would make it."""
    path = folder / f"step-00000007.{hashlib.sha256(data).hexdigest()}.pt"
    path.write_bytes(data)
    return path


# Saving, loading, listing


def test_every_bit_comes_back(tmp_path: Path):
    """Through torch.load, too: nobody needs minitrain to read a checkpoint."""
    path = save(tmp_path / "new" / "folder", 7, STATE)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert list(path.parent.iterdir()) == [path]
    assert path.name == f"step-00000007.{digest}.pt"
    state = torch.load(path, weights_only=True)
    assert fingerprint(state) == fingerprint({"format": 3, "step": 7, **STATE})
    assert load(path)[:2] == (7, path)
    assert fingerprint(load(path).state) == fingerprint(state)


def test_order_is_that_of_steps_and_strangers_are_left_alone(tmp_path: Path):
    """Clocks jump and copies are new: times say nothing, nor do names as text."""
    steps = [100_000_000, 10, 99_999_999, 9]
    paths = {step: save(tmp_path, step, STATE) for step in steps}
    for age, step in enumerate(sorted(steps)):
        os.utime(paths[step], (1e9 - age, 1e9 - age))
    digest = "0" * 64
    for name in [
        f".step-200000000.{digest}.pt.0123456789abcdef.part",
        f"step-200000000.{digest}.pt.part",
        f"step-2.{digest}.pt",
        "notes.txt",
    ]:
        (tmp_path / name).write_bytes(b"stranger")
    (tmp_path / f"step-200000000.{digest}.pt").mkdir()
    expected = contents(tmp_path)
    assert find_all(tmp_path) == [paths[step] for step in sorted(steps)]
    found, faults = find_newest(tmp_path)
    assert found is not None and found.path == paths[100_000_000] and faults == []
    rotate(tmp_path, keep=2, best=9, last=100_000_000)
    del expected[paths[10].name]
    assert contents(tmp_path) == expected


@pytest.mark.parametrize(
    ("keep", "best", "kept"),
    [(2, 3, [3, 8, 9]), (2, 9, [8, 9]), (1, 1, [1, 9]), (9, 1, [1, 3, 8, 9])],
)
def test_rotation_keeps_the_newest_and_the_best(
    keep: int, best: int, kept: list[int], tmp_path: Path
):
    paths = {step: save(tmp_path, step, STATE) for step in [8, 1, 9, 3]}
    rotate(tmp_path, keep, best, last=9)
    assert find_all(tmp_path) == [paths[step] for step in kept]


def test_rotation_removes_no_links(tmp_path: Path):
    """A link was not made by us, and the file behind it even less."""
    victim = save(tmp_path / "elsewhere", 1, STATE)
    folder = tmp_path / "checkpoints"
    newer = [save(folder, step, STATE) for step in [2, 3]]
    link = folder / victim.name
    link.symlink_to(victim)
    before = contents(tmp_path)
    rotate(folder, keep=2, best=3, last=3)
    assert contents(tmp_path) == before
    assert find_all(folder) == [link, *newer] and link.is_symlink()


def unreadable(monkeypatch: pytest.MonkeyPatch, *paths: Path) -> None:
    """Let these be files of another owner: root's rights would prove nothing here."""
    original = checkpoint.open_regular

    def refuse(path: Path) -> BinaryIO:
        if path in paths:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(checkpoint, "open_regular", refuse)


def test_rotation_does_not_count_what_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Else it would remove every new one at once, however many were acknowledged."""
    paths = {step: save(tmp_path, step, STATE) for step in (1, 4, 7, 20, 21)}
    unreadable(monkeypatch, paths[4], paths[20], paths[21])
    found, faults = find_newest(tmp_path)
    assert found is not None and found.step == 7 and len(faults) == 2
    for step in (8, 9, 10):
        paths[step] = save(tmp_path, step, STATE)
        rotate(tmp_path, keep=2, best=0, last=step)
    assert find_all(tmp_path) == [paths[step] for step in (4, 9, 10, 20, 21)]


def test_rotation_does_not_count_what_was_passed_over(tmp_path: Path):
    """As where the disk failed for a moment: now the newer ones can be read again."""
    paths = {step: save(tmp_path, step, STATE) for step in (7, 20, 21)}
    for step in (8, 9):
        paths[step] = save(tmp_path, step, STATE)
        rotate(tmp_path, keep=2, best=0, last=step)
    assert find_all(tmp_path) == [paths[step] for step in (8, 9, 20, 21)]


@on_posix
def test_a_folder_that_cannot_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(CheckpointError, match=f"cannot read {tmp_path}: Permission"):
        find_newest(tmp_path)


# Damage


@pytest.mark.usefixtures("unparsed")
def test_damage_is_refused(rng: random.Random, tmp_path: Path):
    path = save(tmp_path, 7, STATE)
    data = path.read_bytes()
    flips = [flipped(data, bit) for bit in rng.sample(range(8 * len(data)), 1000)]
    truncations = [data[:size] for size in rng.sample(range(len(data)), 100)]
    for damaged in [*flips, *truncations, b"", bytes(len(data)), data + b"\0"]:
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=f"{path.name} is damaged"):
            load(path)


@pytest.mark.usefixtures("unparsed")
def test_swapped_unnamed_and_unreadable_files_are_refused(tmp_path: Path):
    first, second = (save(tmp_path, step, STATE) for step in [1, 2])
    first.rename(tmp_path / "aside")
    second.rename(first)
    (tmp_path / "aside").rename(second)
    for path, reason in [
        (first, "is damaged"),
        (second, "is damaged"),
        (tmp_path / "notes.txt", "not the name of a checkpoint"),
        (tmp_path / f"step-00000001.{'0' * 64}.pt", "cannot read .*: No such file"),
    ]:
        with pytest.raises(CheckpointError, match=reason):
            load(path)


@pytest.mark.parametrize("num_damaged", range(4))
def test_newest_falls_back_but_never_to_the_beginning(
    num_damaged: int, rng: random.Random, tmp_path: Path
):
    """Damaged files are told, and kept for whoever can save something of them."""
    intact = [save(tmp_path, step, STATE) for step in [1, 2, 3]]
    damaged = [intact.pop() for _ in range(num_damaged)]
    expected = {path.name: path.read_bytes() for path in intact}
    for path in damaged:
        bit = rng.randrange(8 * path.stat().st_size)
        path.write_bytes(flipped(path.read_bytes(), bit))
        expected[f"{path.name}.corrupt"] = path.read_bytes()
    for told in [damaged, []]:  # a second attempt finds them renamed
        if intact:
            found, faults = find_newest(tmp_path)
            assert found is not None and found.path == intact[-1]
        else:
            with pytest.raises(CheckpointError, match="is intact") as error:
                find_newest(tmp_path)
            faults = str(error.value).splitlines()[1:-1]
            told = told or sorted(f"{path}.corrupt" for path in damaged)
        assert [fault.split(" is damaged")[0] for fault in faults] == [*map(str, told)]
        assert contents(tmp_path) == expected


def test_read_only_disk_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Root may write to any folder: its rights would prove nothing here."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    intact, damaged = (save(tmp_path, step, STATE) for step in [1, 2])
    damaged.write_bytes(b"")
    monkeypatch.setattr(Path, "rename", refuse)
    found, faults = find_newest(tmp_path)
    assert found is not None and found.path == intact and len(faults) == 1


def test_no_checkpoint_yet(tmp_path: Path):
    assert find_newest(tmp_path) == find_newest(tmp_path / "missing") == (None, [])
    (tmp_path / ".step-00000001.pt.part").touch()  # of a first save that was killed
    assert find_newest(tmp_path) == (None, [])


# Attacks: the hash says that a file is whole, not that it is harmless


class Attack:
    """Unpickling this runs a command."""

    def __init__(self, folder: Path) -> None:
        self.command = f"touch '{folder / 'marker'}'"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def torch_file(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def archive(
    edit: Callable[[str, bytes], tuple[str, bytes]] = lambda name, data: (name, data),
    compression: int = zipfile.ZIP_STORED,
    size: int = 77,
) -> bytes:
    """A checkpoint of `size` zeros, each of its parts edited, zipped anew."""
    buffer = io.BytesIO()
    honest = torch_file({"format": 3, "step": 7, "model": torch.zeros(size)})
    with (
        zipfile.ZipFile(io.BytesIO(honest)) as old,
        zipfile.ZipFile(buffer, "w", compression) as new,
    ):
        for name in old.namelist():
            new.writestr(*edit(name, old.read(name)))
    return buffer.getvalue()


def tar(data: bytes) -> bytes:
    """The format of torch before version 0.1.10."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name in ["sys_info", "pickle", "storages", "tensors"]:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            file.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def attacks(folder: Path) -> dict[str, bytes]:
    """Files that would write into the folder, exhaust the memory, or mislead."""
    attack = Attack(folder)
    honest = {"format": 3, "step": 7, "model": None}
    evil, nested = honest | {"model": attack}, honest | {"model": [{"a": ([attack],)}]}
    pickle_2, pickle_4 = (pickle.dumps(evil, protocol) for protocol in [2, 4])
    giant = b"J\xff\xff\xff\x7f\x85"  # a shape of 2^31 - 1 numbers; of 77, K\x4d\x85
    return {
        "pickle 2": pickle_2,
        "pickle 4": pickle_4,
        "torch 2": torch_file(evil, pickle_protocol=2),
        "torch 4": torch_file(evil, pickle_protocol=4),
        "nested": torch_file(nested),
        "legacy torch": torch_file(evil, _use_new_zipfile_serialization=False),
        "legacy tar": tar(pickle_2),
        "zip bomb": archive(compression=zipfile.ZIP_DEFLATED, size=4 * 10**6),
        "outer paths": archive(lambda name, data: (f"../../{name}", data)),
        "absolute paths": archive(lambda name, data: (f"{folder}/{name}", data)),
        "giant shape": archive(lambda n, d: (n, d.replace(b"K\x4d\x85", giant))),
        "no numbers": archive(lambda n, d: (n, b"" if n.endswith("data/0") else d)),
        "binary names": archive(lambda n, d: (f"é{n}", d)).replace(b"\xc3", b"\xff"),
        "no format": torch_file({"step": 7}),
        "no number of a format": torch_file(honest | {"format": "3"}),
        "other step": torch_file(honest | {"step": 8}),
        "no dict": torch_file(list(honest)),
    }


def test_attacks_are_refused(tmp_path: Path):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    files = {name: forge(folder, data) for name, data in attacks(tmp_path).items()}
    before, refused = contents(tmp_path), {}
    for name, path in files.items():
        try:
            load(path)
        except CheckpointError as error:
            refused[name] = str(error)
    reason = "was refused: not a checkpoint of minitrain"  # and no advice of torch
    assert refused == {name: f"{path} {reason}" for name, path in files.items()}
    assert contents(tmp_path) == before


def test_attacks_would_work_on_others(tmp_path: Path):
    """Else the test above would prove nothing."""
    assert load(forge(tmp_path, archive())).step == 7
    torch.load(io.BytesIO(attacks(tmp_path)["nested"]), weights_only=False)
    assert (tmp_path / "marker").exists()


def test_any_file_is_read_or_refused(rng: random.Random, tmp_path: Path):
    """Without a traceback, whatever an archive is made of."""
    honest, num_refused = archive(), 0
    for _ in range(1000):
        data = bytearray(honest)
        for _ in range(rng.choice([1, 1, 2, 5])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path = forge(tmp_path, bytes(data))
        try:
            load(path)
        except CheckpointError:
            num_refused += 1
        path.unlink()
    assert num_refused > 100


# Other versions


@pytest.mark.parametrize(
    ("number", "summary", "writer"),
    [
        (1, None, "an early 0.1.0"),
        (1, {"versions": {"minitrain": "0.1.9"}}, "0.1.9"),
        (99, {"versions": {"minitrain": "7.5"}}, "7.5"),
        (99, {"versions": [1, 2]}, "another version"),
        (0, None, "another version"),
        (-1, "summary", "another version"),
    ],
)
def test_another_format_is_refused_by_name_and_left_alone(
    number: int, summary: object, writer: str, tmp_path: Path
):
    """Older or newer: the version that wrote it must be able to go on."""
    save(tmp_path, 3, STATE)
    for step in (7, 8):
        state = {"format": number, "step": step, "summary": summary}
        data = torch_file(state)
        digest = hashlib.sha256(data).hexdigest()
        (tmp_path / f"step-{step:08d}.{digest}.pt").write_bytes(data)
    before = contents(tmp_path)
    for find in (find_newest, lambda folder: load(find_all(folder)[-1])):
        with pytest.raises(CheckpointError) as caught:
            find(tmp_path)
        text = str(caught.value)
        assert f"the format {number}, " in text and f"minitrain {writer}, " in text
        assert f"minitrain {minitrain.__version__} reads the format 3 alone" in text
    assert contents(tmp_path) == before


# What is no file, or whose size is no reason to read it


@on_posix
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "socket", "dangling"])
def test_what_is_no_file_counts_as_none(kind: str, tmp_path: Path):
    path = tmp_path / f"step-00000009.{'0' * 64}.pt"
    make = {
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "device": lambda: path.symlink_to("/dev/zero"),
        "socket": lambda: os.mknod(path, stat.S_IFSOCK | 0o600),
        "dangling": lambda: path.symlink_to("nowhere"),
    }
    make[kind]()
    assert find_all(tmp_path) == [] and find_newest(tmp_path) == (None, [])
    with pytest.raises(CheckpointError, match="cannot read"):
        load(path)
    intact = [save(tmp_path, step, STATE) for step in (1, 2, 3)]
    found, faults = find_newest(tmp_path)
    assert found is not None and found.path == intact[-1] and faults == []
    rotate(tmp_path, keep=2, best=0, last=3)
    assert find_all(tmp_path) == intact[1:] and os.path.lexists(path)


def test_a_giant_is_refused_without_being_read_into_memory(tmp_path: Path):
    """A file of 1 GB that is one hole, in less memory than it has."""
    path = tmp_path / f"step-00000009.{'0' * 64}.pt"
    path.touch()
    os.truncate(path, 10**9)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="is damaged: its 1000000000 bytes"):
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()


# Faults of the disk

SYSTEM_CALLS = ["open", "write", "fsync", "replace", "fsync"]


class Disk:
    """Notes the system calls of a save, and fails that of the number `failing`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.failing, self.error = -1, OSError()
        monkeypatch.setattr(files, "open", self.spied("open", open), raising=False)
        for name in ["fsync", "replace"]:
            monkeypatch.setattr(os, name, self.spied(name, getattr(os, name)))

    def spied(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def spy(*arguments: Any) -> Any:
            self.calls.append(name)
            if len(self.calls) - 1 == self.failing:
                raise self.error
            result = function(*arguments)
            if name == "open":
                result.write = self.spied("write", result.write)
            return result

        return spy


@on_posix
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["full", "broken"])
@pytest.mark.parametrize("failing", range(5))
def test_failed_save_is_told_and_harms_nothing(
    failing: int, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Order matters: bytes are durable before the name, and the name before the end."""
    disk = Disk(monkeypatch)
    save(tmp_path, 1, STATE)
    assert disk.calls == SYSTEM_CALLS
    before = contents(tmp_path)
    disk.calls, disk.failing = [], failing
    disk.error = OSError(number, os.strerror(number))
    with pytest.raises(OSError, match=os.strerror(number)):
        save(tmp_path, 2, STATE)
    if failing == 4:  # the new name may outlive a power cut, or may not
        before |= {path.name: path.read_bytes() for path in find_all(tmp_path)[1:]}
        assert verified(tmp_path) == {1, 2}
    assert contents(tmp_path) == before
    disk.calls, disk.failing = [], -1
    save(tmp_path, 2, STATE)
    assert disk.calls == SYSTEM_CALLS  # nothing of the failed attempt is trusted
    assert verified(tmp_path) == {1, 2}


# Kills: a child saves, and is killed; what it had acknowledged must be there


def forked(task: Callable[..., None], *arguments: Any) -> int:
    """The process id of a child that need not import torch: it has all of ours."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            task(*arguments)
            code = 0
        finally:
            os._exit(code)
    return child


def acknowledged(reader: int, writer: int) -> int:
    """The step that a child, now dead, wrote last to the pipe; else 0."""
    os.close(writer)
    with open(reader) as pipe:
        steps = re.findall(r"saved step=(\d+)\n", pipe.read())
    return int(steps[-1]) if steps else 0


def save_for_ever(folder: Path, first: int, writer: int) -> None:
    state = {"model": torch.zeros(200_000)}
    for step in itertools.count(first):
        save(folder, step, state)
        os.write(writer, f"saved step={step}\n".encode())
        rotate(folder, keep=2, best=0, last=step)


@on_posix
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_kills_at_any_instant_lose_no_checkpoint(rng: random.Random, tmp_path: Path):
    """$MINITRAIN_NUM_KILLS tells how many."""
    start = time.perf_counter()
    save(tmp_path, 1, {"model": torch.zeros(200_000)})
    longest = max(0.03, 3 * (time.perf_counter() - start))  # some disks are slow
    steps, newest_step, num_lost, num_partial = {1}, 1, 0, 0
    for _ in range(NUM_KILLS):
        pipe = os.pipe()
        child = forked(save_for_ever, tmp_path, max(steps) + 1, pipe[1])
        time.sleep(rng.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        newest_step = max(newest_step, acknowledged(*pipe))
        steps = verified(tmp_path)
        num_lost += newest_step not in steps
        for path in tmp_path.glob(".*.part"):
            num_partial += 1
            path.unlink()
    print(f"{NUM_KILLS} kills, {num_partial} of them amid a save of {newest_step}")
    assert num_lost == 0
    assert newest_step > 1 and num_partial > 0


def save_when_told(folder: Path, step: int, gate: int, writer: int) -> None:
    os.read(gate, 1)
    save(folder, step, STATE)
    os.write(writer, f"saved step={step}\n".encode())


def save_under_strace(folder: Path, step: int, call: str, fault: str) -> int:
    """The step, if a child acknowledged it though strace injected a fault; else 0."""
    gate, pipe = os.pipe(), os.pipe()
    child = forked(save_when_told, folder, step, gate[0], pipe[1])
    options = ["-o", os.devnull, "-e", f"trace={call}", "-e", f"inject={call}:{fault}"]
    with subprocess.Popen(
        ["strace", "-p", str(child), *options], stderr=subprocess.PIPE, text=True
    ) as strace:
        assert strace.stderr is not None
        answer = strace.stderr.readline()
        os.write(gate[1], b"!")
        _, status = os.waitpid(child, 0)
    for descriptor in gate:
        os.close(descriptor)
    step = acknowledged(*pipe)
    if "attached" not in answer:
        pytest.skip(f"strace cannot trace here: {answer.strip()}")
    end = -signal.SIGKILL if "signal" in fault else 1  # no other fault may come of it
    assert os.waitstatus_to_exitcode(status) == (0 if step else end)
    return step


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("fault", ["signal=KILL", "error=ENOSPC", "error=EIO"])
@pytest.mark.parametrize(
    ("call", "num_calls"), [("openat", 2), ("write", 2), ("fsync", 2), ("/^rename", 1)]
)
def test_fault_at_every_system_call_loses_no_checkpoint(
    call: str, num_calls: int, fault: str, tmp_path: Path
):
    """The first, then the second, and so on until a save has no more of them."""
    save(tmp_path, 1, STATE)
    num_faults, step = 0, 0
    while not step:
        assert 1 in verified(tmp_path)
        assert "signal" in fault or not list(tmp_path.glob(".*"))
        num_faults += 1
        step = save_under_strace(tmp_path, 2, call, f"{fault}:when={num_faults}")
        assert num_faults < 20  # what a killed save left must not hinder the next
    assert verified(tmp_path) == {1, 2}
    assert num_faults > num_calls  # and each was noticed: none was acknowledged


def test_what_cannot_be_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be intact: a disk that fails for a moment must not cost a checkpoint."""
    old, new = (save(tmp_path, step, {"x": step}) for step in (1, 2))
    original = checkpoint.open_regular

    def failing(path: Path) -> BinaryIO:
        if path == new:
            raise OSError(errno.EIO, "Input/output error")
        return original(path)

    monkeypatch.setattr(checkpoint, "open_regular", failing)
    found, faults = find_newest(tmp_path)
    assert found is not None and found.path == old and str(new) in faults[0]
    assert new.exists()
