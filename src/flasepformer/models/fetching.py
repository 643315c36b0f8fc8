"""Fetch one large file over HTTP, checked by its digest, from wherever an earlier attempt stopped.

The client is `httpx`, as `huggingface_hub` brings it along: redirects, proxies and certificates from the
environment, time-outs, one connection for several files. What it leaves to its callers is here: asking for
the rest of a file (`Range`), waiting as long as a host asks, and what to make of answers that are no file.
(`pooch` begins anew after every break; `huggingface_hub.file_download.http_get` does go on, but waits without
a limit when a host asks it to, and is not part of that package's documented interface.)
"""

import errno
import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

from flasepformer.models.errors import FetchError

CONNECT_SECONDS = 15.0
"""How long a host may take to accept a connection."""

READ_SECONDS = 60.0
"""How long a host may be silent."""

N_RETRIES = 4
"""Attempts in a row that bring nothing, after the first, before a fetch is given up."""

RETRY_SECONDS = 1.0
"""Wait before the first of these; it doubles each time."""

LONGEST_WAIT = 120.0
"""Longest wait, in seconds, that a host may ask for (429 or 503 with Retry-After)."""

_PEEK = 2048

Progress = Callable[[int, int], None]
"""Called with the bytes that are here, and how many there will be."""


class _Transient(Exception):
    """The attempt failed, another may not; after `wait` seconds, if the host says."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


@contextmanager
def opened_client() -> Iterator[Any]:
    """Yield an HTTP client for `fetch` and `fetch_json`."""
    timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
    # Compressed, a byte of the answer would not be a byte of the file.
    headers = {"User-Agent": f"flasepformer/{version('flasepformer')}", "Accept-Encoding": "identity"}
    with httpx.Client(follow_redirects=True, timeout=timeout, headers=headers) as client:
        yield client


def fetch_json(client: Any, url: str, notify: Callable[[str], None]) -> Any:
    """Return the JSON that a host answers with.

    Raises:
        FetchError: It answers with anything else, or not at all.
    """

    def attempt() -> bytes:
        with _answer(client, url, {}) as response:
            return bytes(response.read())

    content = _persist(attempt, lambda: 0, notify)
    try:
        return json.loads(content)
    except ValueError as error:
        raise FetchError(f"{_host(url)} answers with {_kind(content)} instead of a list of files") from error


def fetch(
    client: Any,
    url: str,
    path: Path,
    *,
    size: int,
    sha256: str,
    progress: Progress,
    notify: Callable[[str], None],
) -> None:
    """Fetch a file; it appears under its name when it is whole and has its digest.

    Until then it grows beside it, under a name with the digest, and the next call goes on there. What turns
    out to be another file is deleted; if part of it was of an earlier attempt, it is fetched once more.

    Args:
        client: See `opened_client`.
        url: Where it is.
        path: Where it goes.
        size: In bytes.
        sha256: Its digest.
        progress: Called as it grows.
        notify: Called with sentences for a person, such as that the host asks to wait.

    Raises:
        FetchError: It cannot be had, or is not what it should be.
    """
    if path.exists():  # left by a process that was stopped between this and what it wanted the file for
        if _digest(path) == sha256:
            progress(size, size)
            return
        path.unlink()
    part = path.with_name(f"{path.name}.{sha256[:16]}.part")
    for old in path.parent.glob(f"{path.name}.*.part"):
        if old != part:  # of what the host had before
            old.unlink()
    fresh = not part.exists()
    while True:
        with _disk_faults(path.parent, size):
            if _size(part) > size:
                part.unlink()
            _check_room(path.parent, size - _size(part))
            _persist(lambda: _continue(client, url, part, size, progress), lambda: _size(part), notify)
            found = _digest(part)
            if found == sha256:
                part.replace(path)
                return
            part.unlink()
        if fresh:
            raise FetchError(
                f"what {_host(url)} sends is not {path.name}: its SHA-256 is {found}, not {sha256}; "
                "it was deleted, unopened"
            )
        fresh = True
        notify(f"what was here of {path.name} did not fit the rest; fetching all of it")


def _persist(attempt: Callable[[], Any], measure: Callable[[], int], notify: Callable[[str], None]) -> Any:
    """Make attempts until one succeeds, or too many in a row have brought nothing."""
    n_failures = 0
    while True:
        before = measure()
        try:
            return attempt()
        except _Transient as trouble:
            n_failures = 1 if measure() > before else n_failures + 1
            if n_failures > N_RETRIES or (trouble.wait is not None and trouble.wait > LONGEST_WAIT):
                raise FetchError(str(trouble)) from trouble
            wait = RETRY_SECONDS * 2 ** (n_failures - 1) if trouble.wait is None else trouble.wait
            notify(f"{trouble}; trying again in {wait:.0f} s")
            time.sleep(wait)


def _continue(client: Any, url: str, part: Path, size: int, progress: Progress) -> None:
    """Fetch what lacks of a file; what comes is kept, however little it is."""
    begun = _size(part)
    progress(begun, size)
    if begun == size:
        return
    host = _host(url)
    with _answer(client, url, {"Range": f"bytes={begun}-"} if begun else {}) as response:
        if response.status_code == 416:
            part.unlink()
            raise _Transient(f"{host} has no more than {begun:,} bytes of it")
        if response.status_code == 206:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if span is None or int(span[1]) != begun or span[2] not in ("*", str(size)):
                part.unlink()
                raise _Transient(f"{host} sends another part of the file than was asked for")
        else:  # from the beginning: the first attempt, or a host that cannot go on
            begun = 0
        pieces = response.iter_raw()
        head = b""
        announced = response.headers.get("Content-Length")
        try:
            while begun == 0 and len(head) < _PEEK and (piece := next(pieces, b"")):
                head += piece
        except httpx.HTTPError:
            if not head:
                raise
        if begun == 0:
            _refuse_another(head, announced, size, host)
        with part.open("ab" if begun else "wb") as file:
            file.write(head[: size + 1])
            begun += len(head)
            progress(min(begun, size), size)
            for piece in pieces:
                file.write(piece[: size + 1 - min(begun, size)])
                begun += len(piece)
                if begun > size:
                    break
                progress(begun, size)
    if begun > size:
        part.unlink()
        raise FetchError(f"what {host} sends is longer than {size:,} bytes: the file there has changed")
    if begun < size:
        if announced is None and response.status_code == 200:
            part.unlink()
            raise FetchError(
                f"what {host} sends has {begun:,} bytes, not {size:,}: the file there has changed"
            )
        raise _Transient(f"the connection to {host} broke off after {begun:,} of {size:,} bytes")


def _refuse_another(head: bytes, announced: str | None, size: int, host: str) -> None:
    kind = _kind(head)
    if kind == _POINTER:
        raise FetchError(
            f"{host} sends {kind} instead of the file: its allowance for large files may be used up; try "
            "again tomorrow"
        )
    if kind == _PAGE:
        raise FetchError(
            f"{host} sends {kind} instead of the file; a proxy or a login page may stand in between"
        )
    if announced is not None and announced != str(size):
        raise FetchError(
            f"{host} has a file of {int(announced):,} bytes, not {size:,}: the file there has changed"
        )


_POINTER = "a git-LFS pointer"
_PAGE = "a web page"


def _kind(head: bytes) -> str:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:200].lower()
    if start.startswith(b"version https://git-lfs"):
        return _POINTER
    return _PAGE if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")) else "something else"


@contextmanager
def _answer(client: Any, url: str, headers: dict[str, str]) -> Iterator[Any]:
    """Yield the answer to a request that has one to give; anything else is raised in words."""
    host = _host(url)
    try:
        with client.stream("GET", url, headers=headers) as response:
            if response.status_code not in (200, 206, 416):
                _refuse(response)
            yield response
    except httpx.TooManyRedirects as error:
        raise FetchError(f"{host} leads from one address to the next and never to the file") from error
    except httpx.ProxyError as error:
        raise FetchError(
            f"the proxy in between does not let {host} through ({_first_line(error)})"
        ) from error
    except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        raise FetchError(f"{url} leads to no address on the web ({_first_line(error)})") from error
    except httpx.ConnectTimeout as error:
        raise FetchError(f"{host} does not answer in time") from error
    except httpx.ConnectError as error:
        raise FetchError(f"no connection to {host} ({_first_line(error)})") from error
    except httpx.TimeoutException as error:
        raise _Transient(f"{host} does not answer in time") from error
    except httpx.HTTPError as error:
        raise _Transient(f"the connection to {host} broke off ({_first_line(error)})") from error


def _refuse(response: Any) -> None:
    """Say what a status means that is not that of a file."""
    host, status = _host(str(response.url)), response.status_code
    body = b""
    for piece in response.iter_raw(_PEEK):
        body += piece
        if len(body) >= _PEEK:
            break
    if b"data quota" in body.lower():
        raise FetchError(f"{host} has used up its allowance for large files ({status}); try again tomorrow")
    if status in (429, 503) and (wait := _retry_after(response.headers.get("Retry-After"))) is not None:
        raise _Transient(f"{host} is asked for too much and wants {wait:.0f} s of rest ({status})", wait)
    if status == 429 or status >= 500:
        raise _Transient(f"{host} answers with status {status}")
    if status in (404, 410):
        raise FetchError(f"{host} has no such file ({status}): it was moved or taken away")
    if status in (401, 403, 407, 451):
        raise FetchError(f"{host} does not permit it ({status})")
    raise FetchError(f"{host} answers with status {status}")


def _retry_after(text: str | None) -> float | None:
    """Return what a Retry-After header says, in seconds: a number of them, or a date."""
    if text is None:
        return None
    if text.strip().isdecimal():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


@contextmanager
def _disk_faults(folder: Path, size: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FetchError(_no_room(folder, size)) from error
        raise


def _check_room(folder: Path, needed: int) -> None:
    if shutil.disk_usage(folder).free < needed:
        raise FetchError(_no_room(folder, needed))


def _no_room(folder: Path, needed: int) -> str:
    free = shutil.disk_usage(folder).free
    return f"no room in {folder}: {needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2] or url


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
