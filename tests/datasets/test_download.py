"""Downloads from a local server that fails in every way a server can fail."""

import hashlib
import io
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from minitrain.datasets import download
from minitrain.datasets.download import fetch
from minitrain.system.errors import DataError

CONTENT = bytes(range(256)) * 1024  # several blocks
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NUM_TOGETHER = 8
NUM_KILLS = int(os.environ.get("MINITRAIN_NUM_DOWNLOAD_KILLS", "5"))

# What each address says, or what happens there: the methods of Handler below.
WHOLE = ["whole", "whole_of_unknown_length", "whole_of_senseless_length", "redirected"]
FAILURES = {
    "forbidden": "Forbidden",
    "unavailable": "Service Unavailable",
    "empty": "sent another file",
    "wrong": f"sent another file, SHA-256 {hashlib.sha256(b'wrong').hexdigest()}",
    "cut_short": f"cut short at 1000 of {len(CONTENT)} bytes",
    "cut_short_in_chunks": "IncompleteRead",
    "silent": "timed out",
    "silent_midway": "timed out",
    "slow": "took more than 1 s",
    "loop": "infinite loop",
    "not_http": "nonsense",
    "refused": "refused",
}


class Server(ThreadingHTTPServer):
    """Answers each address as its name says."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str] = []
        self.stopped = threading.Event()
        self.has_begun = threading.Event()
        self.all_wait = threading.Event()

    def url(self, path: str) -> str:
        if path == "refused":
            with socket.create_server(("127.0.0.1", 0)) as nobody:
                return f"http://127.0.0.1:{nobody.getsockname()[1]}/refused"
        return f"http://127.0.0.1:{self.server_port}/{path}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Be quiet where the client has hung up."""


class Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        path = self.path.lstrip("/")
        self.server.requests.append(path)
        getattr(self, path)()

    def answer(self, body: bytes, status: int = 200, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def whole(self) -> None:
        self.answer(CONTENT, Content_Length=len(CONTENT))

    def whole_of_unknown_length(self) -> None:
        self.answer(CONTENT)

    def whole_of_senseless_length(self) -> None:
        self.answer(CONTENT, Content_Length="many")

    def redirected(self) -> None:
        self.answer(b"", 302, Location="/whole")

    def whole_when_all_wait(self) -> None:
        self.server.has_begun.set()
        self.server.all_wait.wait(60)
        self.whole()

    def whole_slowly(self) -> None:
        self.answer(b"", Content_Length=len(CONTENT))
        self.server.has_begun.set()
        for i in range(0, len(CONTENT), len(CONTENT) // 32):
            self.wfile.write(CONTENT[i : i + len(CONTENT) // 32])
            time.sleep(0.01)

    def forbidden(self) -> None:
        self.answer(CONTENT, 403)

    def unavailable(self) -> None:
        self.answer(b"", 503)

    def empty(self) -> None:
        self.answer(b"", Content_Length=0)

    def wrong(self) -> None:
        self.answer(b"wrong", Content_Length=5)

    def cut_short(self) -> None:
        self.answer(CONTENT[:1000], Content_Length=len(CONTENT))

    def cut_short_in_chunks(self) -> None:
        self.protocol_version = "HTTP/1.1"
        self.answer(b"3e8\r\n" + CONTENT[:500], Transfer_Encoding="chunked")

    def silent(self) -> None:
        self.server.stopped.wait(30)

    def silent_midway(self) -> None:
        self.answer(CONTENT[:1000], Content_Length=len(CONTENT))
        self.server.stopped.wait(30)

    def slow(self) -> None:
        self.answer(b"", Content_Length=len(CONTENT))
        for i in range(500):
            self.wfile.write(CONTENT[i : i + 1])
            if self.server.stopped.wait(0.01):
                return

    def loop(self) -> None:
        self.answer(b"", 302, Location="/loop")

    def not_http(self) -> None:
        self.wfile.write(b"nonsense\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.stopped.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(download, "TOTAL_SECONDS", 1.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "MNIST" / "raw" / "train-images.gz"


def contents(folder: Path) -> dict[str, bytes]:
    """All files in the folder and below, temporary ones too, but for the lock."""
    files = [f for f in folder.rglob("*") if f.is_file() and f.name != ".lock"]
    return {f.name: f.read_bytes() for f in files}


@pytest.mark.parametrize("answer", WHOLE)
def test_whole_file(server: Server, path: Path, tmp_path: Path, answer: str):
    fetch(path, SHA256, [server.url(answer), server.url("forbidden")])
    assert contents(tmp_path) == {path.name: CONTENT}
    assert "forbidden" not in server.requests


def test_progress_is_shown_on_a_terminal_alone(
    server: Server, path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream in (Terminal(), io.StringIO()):
        path.unlink(missing_ok=True)
        monkeypatch.setattr(sys, "stderr", stream)
        fetch(path, SHA256, [server.url("whole")])
        shown = stream.getvalue()
        assert (f"{path.name}: 100%" in shown) if stream.isatty() else shown == ""


@pytest.mark.usefixtures("impatient")
def test_failure_names_every_address_its_reason_and_a_way_by_hand(
    server: Server, path: Path, tmp_path: Path
):
    urls = {server.url(failure): reason for failure, reason in FAILURES.items()}
    with pytest.raises(DataError) as caught:
        fetch(path, SHA256, list(urls))
    text = str(caught.value)
    for url, reason in urls.items():
        assert reason in text.partition(f"{url}: ")[2].partition("http://")[0], url
    first, last = text.splitlines()[0], text.splitlines()[-1]
    assert path.name in first and str(path.parent) in first
    assert "by hand" in last and SHA256 in last
    assert contents(tmp_path) == {}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("failure", FAILURES)
def test_next_address_is_tried_after(
    server: Server, path: Path, tmp_path: Path, failure: str
):
    fetch(path, SHA256, [server.url(failure), server.url("whole")])
    assert server.requests[-1] == "whole"
    assert contents(tmp_path) == {path.name: CONTENT}


def test_good_file_is_not_requested_again(server: Server, path: Path):
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    before = path.stat()
    fetch(path, SHA256, [server.url("whole")])
    assert server.requests == [] and path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize(
    "damage",
    [lambda c: c[:-1], lambda c: b"\1" + c[1:], lambda c: b""],
    ids=["cut", "changed", "empty"],
)
def test_damaged_file_is_told_and_left_alone(
    server: Server, path: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
):
    """It may be somebody's only copy of something else."""
    path.parent.mkdir(parents=True)
    path.write_bytes(damage(CONTENT))
    with pytest.raises(DataError) as caught:
        fetch(path, SHA256, [server.url("whole")])
    actual = hashlib.sha256(damage(CONTENT)).hexdigest()
    assert all(part in str(caught.value) for part in (str(path), actual, SHA256))
    assert contents(tmp_path) == {path.name: damage(CONTENT)}
    assert server.requests == []


def test_folder_in_the_place_of_the_file_is_told(server: Server, path: Path):
    path.mkdir(parents=True)
    with pytest.raises(DataError, match=f"cannot read {path}"):
        fetch(path, SHA256, [server.url("whole")])
    assert server.requests == []


def test_folder_that_cannot_be_is_told(server: Server, tmp_path: Path):
    """Path.exists raises for such a name, as for one in a folder of somebody else."""
    with pytest.raises(DataError, match="could not be downloaded"):
        fetch(tmp_path / ("x" * 300) / "file", SHA256, [server.url("whole")])
    assert contents(tmp_path) == {}


def program(path: Path, url: str) -> list[str]:
    """A process of its own that fetches the file."""
    code = (
        "from pathlib import Path; from minitrain.datasets.download import fetch; "
        f"fetch(Path({str(path)!r}), {SHA256!r}, [{url!r}])"
    )
    return [sys.executable, "-c", code]


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX's locks")
def test_of_simultaneous_downloads_one_is_made(
    server: Server, path: Path, tmp_path: Path
):
    """The server answers the first only when all others have come, and wait."""
    url = server.url("whole_when_all_wait")
    with ThreadPoolExecutor() as pool:
        first = pool.submit(fetch, path, SHA256, [url])
        assert server.has_begun.wait(60)
        others = [
            subprocess.Popen(program(path, url), stderr=subprocess.PIPE)
            for _ in range(NUM_TOGETHER - 1)
        ]
        for other in others:
            assert other.stderr is not None
            assert other.stderr.readline().startswith(b"waiting for process ")
        server.all_wait.set()
        first.result(timeout=60)
        for other in others:
            assert (other.communicate(timeout=60)[1], other.returncode) == (b"", 0)
    assert server.requests == ["whole_when_all_wait"]
    assert contents(tmp_path) == {path.name: CONTENT}


def test_kills_leave_no_part_of_a_file_under_its_name(
    server: Server, path: Path, tmp_path: Path
):
    """$MINITRAIN_NUM_DOWNLOAD_KILLS tells how many; what they left is cleared away."""
    num_partial = 0
    for _ in range(NUM_KILLS):
        with subprocess.Popen(program(path, server.url("whole_slowly"))) as process:
            while process.poll() is None and not server.has_begun.wait(0.01):
                pass
            time.sleep(random.uniform(0, 0.3))
            process.kill()
        server.has_begun.clear()
        assert {path.name: CONTENT}.items() >= {
            name: data for name, data in contents(tmp_path).items() if name[0] != "."
        }.items()
        num_partial += not path.exists()
        path.unlink(missing_ok=True)
    assert num_partial > 0
    fetch(path, SHA256, [server.url("whole")])
    assert contents(tmp_path) == {path.name: CONTENT}
