"""The server of the page: it hands out the page's own files, and can do nothing else.

A name is looked up in a table made at the start, so that no request reaches another file; nothing is written,
and nothing that a browser sends is kept. A page of another origin gets no answer, and neither does one that
reaches this computer under a name of its own (DNS rebinding).
"""

import ipaddress
import socket
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from flasepformer.web.files import PageFile

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; connect-src 'self'; "
        "style-src 'self'; img-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
"""Of every answer. Opener and embedder policy are what lets WebAssembly use threads."""

TIMEOUT_SECONDS = 20.0
"""A connection that says nothing for so long is closed."""

MAX_CONNECTIONS = 64
"""More at a time are told to come again."""

_BLOCK = 1 << 16


def is_local(host: str) -> bool:
    """Tell whether an address to listen on can be reached from this computer only.

    >>> is_local("127.0.0.1"), is_local("localhost"), is_local("::1"), is_local("0.0.0.0")
    (True, True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class PageServer(ThreadingHTTPServer):
    """Hands out files by name.

    Args:
        files: See `page_files`.
        host: Address to listen on.
        port: 0 for any that is free; see `url`.
        names: Host names, beside the address itself and those of this computer, under which it may be asked.

    Raises:
        OSError: The address or the port cannot be had.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(
        self,
        files: Mapping[str, PageFile],
        host: str = "127.0.0.1",
        port: int = 8000,
        *,
        names: tuple[str, ...] = (),
    ) -> None:
        self.files = {"": files["index.html"], **files}
        self.host = host
        self.names = {"localhost", "127.0.0.1", "::1", host.lower(), *(name.lower() for name in names)}
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.server_address[1]}/"

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            request.sendall(
                b"HTTP/1.1 503 Busy\r\nRetry-After: 2\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: the usual reason is a browser that went away."""


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT_SECONDS

    def do_GET(self) -> None:
        self._answer(with_content=True)

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):  # any other method
            return self._refuse_method
        raise AttributeError(name)

    def _refuse_method(self) -> None:
        self.close_connection = True  # what it brings is not read
        self._say(HTTPStatus.METHOD_NOT_ALLOWED, "this server takes nothing: it only hands out the page")

    def _answer(self, *, with_content: bool) -> None:
        if self.headers.get("Content-Length", "0") != "0" or self.headers.get("Transfer-Encoding"):
            self.close_connection = True
            self._say(HTTPStatus(413), "this server takes nothing: it only hands out the page")
            return
        if not self._is_asked_by_name(self.headers.get("Host", "")):
            self._say(
                HTTPStatus.FORBIDDEN, "this server does not answer to that name (flasepformer serve --name)"
            )
            return
        origin = self.headers.get("Origin")
        foreign = origin is not None and urlsplit(origin).netloc.lower() != self.headers["Host"].lower()
        site, mode = self.headers.get("Sec-Fetch-Site", "none"), self.headers.get("Sec-Fetch-Mode")
        if foreign or (site in ("cross-site", "same-site") and mode != "navigate"):
            self._say(HTTPStatus.FORBIDDEN, "another page may not ask this server for anything")
            return
        file = self.server.files.get(unquote(urlsplit(self.path).path).removeprefix("/"))
        if file is None:
            self._say(HTTPStatus.NOT_FOUND, "the page has no such file")
            return
        self._begin(HTTPStatus.OK, file.media_type, file.size)
        if with_content and file.path is not None:
            with file.path.open("rb") as content:
                while block := content.read(_BLOCK):
                    self.wfile.write(block)
        elif with_content:
            self.wfile.write(file.content)

    def _is_asked_by_name(self, host: str) -> bool:
        try:
            parts = urlsplit(f"//{host}")
            return parts.hostname in self.server.names and parts.port in (None, self.server.server_address[1])
        except ValueError:
            return False

    def _say(self, status: HTTPStatus, sentence: str) -> None:
        content = f"{sentence}\n".encode()
        self._begin(status, "text/plain; charset=utf-8", len(content))
        if self.command != "HEAD":
            self.wfile.write(content)

    def _begin(self, status: HTTPStatus, media_type: str, size: int) -> None:
        self.send_response(status)
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(size))
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what is no proper request, also without a page of HTML."""
        self.close_connection = True
        self.request_version = "HTTP/1.1"  # or the answer would have no status
        if not getattr(self, "command", None):
            self.command = "GET"
        self._say(HTTPStatus(code), message or HTTPStatus(code).phrase)

    def version_string(self) -> str:
        return "flasepformer"

    def log_message(self, format: str, *args: Any) -> None:
        """Keep no record of who asked for what."""
