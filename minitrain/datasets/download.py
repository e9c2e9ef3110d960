"""Download a file of known content: whole or not at all, and within bounds of time."""

import hashlib
import http.client
import os
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from tqdm import tqdm

from minitrain.system.errors import DataError
from minitrain.system.files import replacing
from minitrain.system.lock import locked
from minitrain.system.terminal import warn

SILENCE_SECONDS = 8.0
"""How long a server may send nothing before the next address is tried."""


TOTAL_SECONDS = 300.0
"""How long one file may take from one address."""


def fetch(path: Path, sha256: str, urls: Sequence[str]) -> None:
    """Make sure that `path` holds the file with this SHA-256; download it if absent.

    A file that is there already is verified and never written to. The addresses are
    tried in turn until one of them sends the right bytes. Of several processes one
    downloads, and the others wait for it.

    Args:
        path: Where the file is, or will be.
        sha256: Its SHA-256, in hexadecimal digits.
        urls: Addresses that send it.

    Raises:
        DataError: The file there is another one, or no address sends it. The text has
            every address with its reason, and where to put the file by hand.
    """
    if os.path.exists(path):  # False, not an error, where it cannot be told
        verify(path, sha256)
        return
    folder = path.parent

    def tell(holder: str) -> None:
        warn(f"waiting for {holder}, which downloads into {folder}")

    with ExitStack() as stack:
        with suppress(OSError):  # where a disk has no locks each process downloads
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder / ".lock", tell))
        if os.path.exists(path):  # another process was faster
            verify(path, sha256)
        else:
            _clear(path)
            _download_from(urls, path, sha256)


def _download_from(urls: Sequence[str], path: Path, sha256: str) -> None:
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
        for part in path.parent.glob(f".{path.name}.{'[0-9a-f]' * 16}.part"):
            part.unlink()


def verify(path: Path, sha256: str) -> None:
    """Verify the SHA-256 of a file.

    Raises:
        DataError: It has another one, or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    if actual != sha256:
        raise DataError(
            f"{path} is damaged or another file: its SHA-256 is\n  {actual}, not\n"
            f"  {sha256}.\nIt was left as it is; remove it to download it anew."
        )


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
            disable=None,  # quiet where standard error is no terminal
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
