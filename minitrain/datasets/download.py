"""Download a file of known content: whole or not at all, and within bounds of time."""

import hashlib
import http.client
import os
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

from minitrain.system.errors import DataError
from minitrain.system.files import leftovers, open_regular, replacing
from minitrain.system.lock import locked
from minitrain.system.terminal import warn

SILENCE_SECONDS = 8.0
"""How long a server may send nothing before the next address is tried."""


TOTAL_SECONDS = 300.0
"""How long one file may take from one address."""


LARGEST = 100_000_000
"""Bytes of a file: ten times those of the largest that there is to download."""


def fetch(path: Path, sha256: str, urls: Iterable[str]) -> bytes:
    """Read the file with this SHA-256, and download it where it is absent.

    A file that is there already is verified and never written to. The addresses are
    tried in turn until one of them sends the right bytes. Of several processes one
    downloads, and the others wait for it.

    Args:
        path: Where the file is, or will be.
        sha256: Its SHA-256, in hexadecimal digits.
        urls: Addresses that send it; they are asked for only where it is absent.

    Returns:
        The bytes that have this SHA-256.

    Raises:
        DataError: The file there is another one, or no address sends it. The text has
            every address with its reason, and where to put the file by hand.
    """
    if not os.path.exists(path):  # False, not an error, where it cannot be told
        with _alone_in(path.parent):
            if not os.path.exists(path):  # else another process was faster
                _clear(path)
                _download_from(urls, path, sha256)
    return _read(path, sha256)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process downloads into the folder.

    Where the disk has no locks each process downloads for itself.
    """

    def tell(holder: str) -> None:
        warn(f"waiting for {holder}, which downloads into {folder}")

    with ExitStack() as stack:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder / ".lock", tell))
        yield


def _download_from(urls: Iterable[str], path: Path, sha256: str) -> None:
    reasons = []
    for url in urls:
        try:
            _download(url, path, sha256)
            return
        except (OSError, http.client.HTTPException, _UnexpectedContent) as error:
            reasons.append(f"  {url}: {getattr(error, 'reason', error) or repr(error)}")
    raise DataError(
        f"{path.name} is not in {path.parent} and could not be downloaded:\n"
        + "\n".join(reasons)
        + f"\nPut the file there by hand (SHA-256 {sha256}), or try again later."
    )


def _clear(path: Path) -> None:
    """Remove what downloads of this file left that were killed."""
    with suppress(OSError):
        for part in leftovers(path.parent, path.name):
            part.unlink()


def _read(path: Path, sha256: str) -> bytes:
    """Read a file with this SHA-256, or raise DataError."""
    remedy = "It was left as it is; remove it to download it anew."
    try:
        with open_regular(path) as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}. {remedy}") from None
    if len(data) > LARGEST:
        raise DataError(f"{path} is another file: {LARGEST} bytes and more. {remedy}")
    actual = hashlib.sha256(data).hexdigest()
    if actual != sha256:
        raise DataError(
            f"{path} is damaged or another file: its SHA-256 is\n  {actual}, not\n"
            f"  {sha256}.\n{remedy}"
        )
    return data


class _UnexpectedContent(Exception):
    pass


def _download(url: str, path: Path, sha256: str) -> None:
    deadline = time.monotonic() + TOTAL_SECONDS
    digest = hashlib.sha256()
    request = urllib.request.Request(url, headers={"User-Agent": "minitrain"})
    with (
        urllib.request.urlopen(request, timeout=SILENCE_SECONDS) as response,
        replacing(path) as file,
        tqdm(
            total=response.length,  # None where the server does not tell
            desc=path.name,
            unit="B",
            unit_scale=True,
            disable=None,  # quiet where standard error is not a terminal
        ) as bar,
    ):
        while block := response.read1(1 << 16):
            file.write(block)
            digest.update(block)
            bar.update(len(block))
            if time.monotonic() > deadline:
                raise _UnexpectedContent(f"took more than {TOTAL_SECONDS:.0f} s")
        if file.tell() < (bar.total or 0):
            raise _UnexpectedContent(f"cut short at {file.tell()} of {bar.total} bytes")
        if digest.hexdigest() != sha256:
            raise _UnexpectedContent(f"sent another file, SHA-256 {digest.hexdigest()}")
