"""Fetch one large file over HTTP, checked by its digest, from wherever an earlier attempt stopped.

The transport is `urllib.request` of the standard library: redirects, proxies of the environment, TLS against
the system's certificates. What no transport does is here: asking for the rest of a file (`Range`), waiting
as long as a host asks, and what to make of answers that are no file.

Other transports were looked at, since each would be one more package for everybody who only listens:
`pooch` (with `requests`) begins anew after every break; `huggingface_hub.file_download.http_get` does go on,
but waits without a limit when a host asks it to, and is not part of that package's documented interface;
`httpx` and `requests` leave all of this to their callers, as `urllib` does, and add a pool of connections
and certificates of their own, which two files per model do not need.
"""

import errno
import hashlib
import http.client
import json
import re
import shutil
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from flasepformer.models.errors import FetchError

SILENCE_SECONDS = 30.0
"""How long a host may take to accept a connection, and be silent afterwards."""

N_RETRIES = 4
"""Attempts in a row that bring nothing, after the first, before a fetch is given up."""

RETRY_SECONDS = 1.0
"""Wait before the first of these; it doubles each time."""

LONGEST_WAIT = 120.0
"""Longest wait, in seconds, that a host may ask for (429 or 503 with Retry-After)."""

_PEEK = 2048
_PIECE = 1 << 16
_LONGEST_LIST = 1 << 24

Progress = Callable[[int, int], None]
"""Called with the bytes that are here, and how many there will be."""


class _Transient(Exception):
    """The attempt failed, another may not; after `wait` seconds, if the host says."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


def fetch_json(url: str, notify: Callable[[str], None]) -> Any:
    """Return the JSON that a host answers with.

    Raises:
        FetchError: It answers with anything else, or not at all.
    """

    def attempt() -> bytes:
        with closing(_request(url, {})) as response:
            content = b""
            for piece in _pieces(response, _host(url)):
                content += piece
                if len(content) > _LONGEST_LIST:
                    raise FetchError(f"{_host(url)} answers with more than a list of files")
            announced = _announced(response)
            if announced is not None and len(content) < announced:
                raise _Transient(f"the connection to {_host(url)} broke off")
            return content

    content = _persist(attempt, lambda: 0, notify)
    try:
        return json.loads(content)
    except ValueError as error:
        raise FetchError(f"{_host(url)} answers with {_kind(content)} instead of a list of files") from error


def fetch(
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
        url: Where it is.
        path: Where it goes. What lies there already is taken if it has the digest.
        size: In bytes.
        sha256: Its digest.
        progress: Called as it grows.
        notify: Called with sentences for a person, such as that the host asks to wait.

    Raises:
        FetchError: It cannot be had, or is not what it should be.
    """
    if path.exists():  # put there by hand, or left by a process that was stopped after this
        if _digest(path) == sha256:
            progress(size, size)
            return
        notify(f"{path} is not {path.name} as it was published, and was deleted")
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
            _persist(lambda: _continue(url, part, size, progress), lambda: _size(part), notify)
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


def _continue(url: str, part: Path, size: int, progress: Progress) -> None:
    """Fetch what lacks of a file; what comes is kept, however little it is."""
    begun = _size(part)
    progress(begun, size)
    if begun == size:
        return
    host = _host(url)
    with closing(_request(url, {"Range": f"bytes={begun}-"} if begun else {})) as response:
        if response.status == 416:
            part.unlink(missing_ok=True)
            raise _Transient(f"{host} has no more than {begun:,} bytes of it")
        if response.status == 206:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if span is None or int(span[1]) != begun or span[2] not in ("*", str(size)):
                part.unlink(missing_ok=True)
                raise _Transient(f"{host} sends another part of the file than was asked for")
        else:  # from the beginning: the first attempt, or a host that cannot go on
            begun = 0
        pieces, head = _pieces(response, host), b""
        try:
            while begun == 0 and len(head) < _PEEK and (piece := next(pieces, b"")):
                head += piece
        except _Transient:
            if not head:
                raise
        announced = _announced(response)
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
        if announced is None and response.status == 200:
            part.unlink()
            raise FetchError(
                f"what {host} sends has {begun:,} bytes, not {size:,}: the file there has changed"
            )
        raise _Transient(f"the connection to {host} broke off after {begun:,} of {size:,} bytes")


def _refuse_another(head: bytes, announced: int | None, size: int, host: str) -> None:
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
    if announced not in (None, size):
        raise FetchError(
            f"{host} has a file of {announced:,} bytes, not {size:,}: the file there has changed"
        )


_POINTER = "a git-LFS pointer"
_PAGE = "a web page"


def _kind(head: bytes) -> str:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:200].lower()
    if start.startswith(b"version https://git-lfs"):
        return _POINTER
    return _PAGE if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")) else "something else"


def _request(url: str, headers: dict[str, str]) -> Any:
    """Return the answer to a request that has one to give; anything else is raised in words."""
    host = _host(url)
    try:
        request = urllib.request.Request(url, headers=headers)
        response = _opener().open(request, timeout=SILENCE_SECONDS)
    except HTTPError as error:
        if error.status == 416:
            return error
        with closing(error):
            _refuse(error)
    except URLError as error:
        reason = error.reason
        if not isinstance(reason, OSError):
            raise FetchError(f"{url} leads to no address on the web ({reason})") from error
        _raise_no_connection(url, reason)
    except (http.client.InvalidURL, ValueError) as error:
        raise FetchError(f"{url} leads to no address on the web ({_first_line(error)})") from error
    except TimeoutError as error:
        raise _Transient(f"{host} does not answer in time") from error
    except (http.client.HTTPException, OSError) as error:
        raise _Transient(f"the connection to {host} broke off ({_first_line(error)})") from error
    if response.status not in (200, 206):
        with closing(response):
            raise FetchError(f"{host} answers with status {response.status}")
    return response


def _raise_no_connection(url: str, reason: OSError) -> NoReturn:
    host, proxy = _host(url), _proxy(url)
    if isinstance(reason, ssl.SSLCertVerificationError):
        raise FetchError(
            f"the certificate of {host} is not one that this computer trusts ({reason.verify_message}): a "
            "proxy may stand in between, or Python has found no certificates (SSL_CERT_FILE names a file)"
        ) from reason
    if str(reason).startswith("Tunnel connection failed"):
        raise FetchError(f"the proxy {proxy} does not let {host} through ({_first_line(reason)})") from reason
    way = f"{host} through the proxy {proxy}" if proxy else host
    if isinstance(reason, TimeoutError):
        raise FetchError(f"{way} does not answer in time") from reason
    if isinstance(reason, ConnectionResetError | BrokenPipeError):
        raise _Transient(f"the connection to {way} broke off ({_first_line(reason)})") from reason
    raise FetchError(f"no connection to {way} ({_first_line(reason)})") from reason


def _opener() -> urllib.request.OpenerDirector:
    """Return what speaks HTTP and nothing else; made anew for each request, as proxies may change."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", f"flasepformer/{_version()}")]
    return opener


def _pieces(response: Any, host: str) -> Iterator[bytes]:
    """Yield what comes, as it comes, until nothing more does."""
    try:
        while piece := response.read1(_PIECE):
            yield piece
    except TimeoutError as error:
        raise _Transient(f"{host} does not answer in time") from error
    except (http.client.HTTPException, OSError) as error:
        raise _Transient(f"the connection to {host} broke off ({_first_line(error)})") from error


def _announced(response: Any) -> int | None:
    """Return how many bytes an answer says that it has."""
    text = str(response.headers.get("Content-Length") or "")
    return int(text) if text.isdecimal() else None


def _refuse(response: HTTPError) -> NoReturn:
    """Say what a status means that is not that of a file."""
    host, status = _host(response.url or ""), response.code
    if 300 <= status < 400:
        if response.headers.get("Location") and "redirection to url" not in str(response.reason).lower():
            raise FetchError(f"{host} leads from one address to the next and never to the file")
        raise FetchError(f"{host} leads to no address on the web ({_first_line(response.reason)})")
    try:
        body = response.read(_PEEK)
    except (http.client.HTTPException, OSError):
        body = b""
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


def _proxy(url: str) -> str | None:
    """Return the address of the proxy that a request goes through, without its password."""
    parts = urlsplit(url)
    address = urllib.request.getproxies().get(parts.scheme)
    if not address or urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    return _host(address) if "://" in address else address.rpartition("@")[2]


def _version() -> str:
    try:
        return version("flasepformer")
    except PackageNotFoundError:  # run from its folder, never installed
        return "0"


def _first_line(error: object) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
