"""GitHub with git-LFS and ModelScope on this machine, as far as a download sees them.

Real HTTP servers: GitHub, the media host that it redirects to for large files, ModelScope, and the storage
that ModelScope redirects to. Faults are put in on demand, and every request is written down.
"""

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = b"<!DOCTYPE html><html><body>Please log in to this network.</body></html>"


@dataclass
class Answer:
    """What is answered: `n_sent` bytes of the body, then nothing more; `stalls`: without hanging up."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    n_sent: int | None = None
    stalls: bool = False
    has_length: bool = True
    seconds_per_part: float = 0.0
    """Sent in 20 parts with so long a pause after each."""


Fault = Callable[[Callable[[], Answer]], Answer]
"""Answers in place of the server; calling what it is given does what the server would have done."""


class WeightsServer:
    """The four hosts, while the `with` block lasts; `files` holds what lies on them, by host and URL path."""

    def __init__(self) -> None:
        self.github_files: dict[str, bytes] = {}  # OWNER/NAME/COMMIT/PATH
        self.modelscope_files: dict[str, bytes] = {}  # OWNER/NAME/REVISION/PATH
        self.requests: list[tuple[str, str | None]] = []
        self._faults: list[tuple[re.Pattern[str], Fault, list[int]]] = []
        self._closing = threading.Event()
        names = ("github", "media", "modelscope", "storage")
        self._servers = {name: self._bind(name) for name in names}
        self.url = {name: f"http://127.0.0.1:{self._servers[name].server_port}" for name in names}

    def __enter__(self) -> "WeightsServer":
        for server in self._servers.values():
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        for server in self._servers.values():
            server.shutdown()
            server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """Variables that send a download here."""
        return {
            "FLASEPFORMER_GITHUB_ENDPOINT": self.url["github"],
            "MODELSCOPE_ENDPOINT": self.url["modelscope"],
            "NO_PROXY": "127.0.0.1",
        }

    def add_fault(self, line: str, fault: Fault, times: int = 10**6) -> None:
        """Change the answers to the next requests with such a line ("github /path"); the last one rules."""
        self._faults.insert(0, (re.compile(line), fault, [times]))

    def heal(self) -> None:
        """Take all faults away, and forget the requests so far."""
        self._faults.clear()
        self.requests.clear()

    def ranges(self, host: str) -> list[str | None]:
        """Return what was asked of a host: the ranges, None for a whole file."""
        return [wanted for line, wanted in self.requests if line.startswith(f"{host} ")]

    def _bind(self, name: str) -> ThreadingHTTPServer:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1

            def do_GET(self) -> None:
                answer = owner._answer(name, self.path, self.headers.get("Range"))
                self.send_response(answer.status)
                headers = {"Content-Length": str(len(answer.body))} if answer.has_length else {}
                for key, value in {**headers, **answer.headers}.items():
                    self.send_header(key, value)
                if not answer.has_length:
                    self.send_header("Connection", "close")
                self.end_headers()
                body = answer.body[: answer.n_sent]
                step = len(body) if not answer.seconds_per_part else -(-len(body) // 20)
                for start in range(0, len(body), max(step, 1)):
                    self.wfile.write(body[start : start + step])
                    self.wfile.flush()
                    time.sleep(answer.seconds_per_part)
                if answer.stalls:
                    self.wfile.flush()
                    owner._closing.wait(60)
                if answer.stalls or answer.n_sent is not None or not answer.has_length:
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_: object) -> None:  # clients that are killed hang up
                pass

        return Server(("127.0.0.1", 0), Handler)

    def _answer(self, name: str, path: str, wanted: str | None) -> Answer:
        line = f"{name} {path}"
        self.requests.append((line, wanted))
        for pattern, fault, left in self._faults:
            if left[0] and pattern.search(line):
                left[0] -= 1
                return fault(lambda: self._route(name, path, wanted))
        return self._route(name, path, wanted)

    def _route(self, name: str, path: str, wanted: str | None) -> Answer:
        parts = urlsplit(path)
        where = unquote(parts.path).strip("/")
        if name == "github":
            found = re.fullmatch(r"([^/]+/[^/]+)/raw/([^/]+)/(.+)", where)
            key = "/".join(found.groups()) if found else ""
            if key not in self.github_files:
                return Answer(404, body=b"Not Found")
            return Answer(302, {"Location": f"{self.url['media']}/{key}"})
        if name == "media":
            return _send(self.github_files.get(where), wanted)
        if name == "storage":
            return _send(self.modelscope_files.get(where), wanted)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        found = re.fullmatch(r"api/v1/models/([^/]+/[^/]+)/repo(/files)?", where)
        if not found:
            return Answer(404, body=b"{}")
        folder = f"{found[1]}/{query.get('Revision')}/"
        if not found[2]:
            key = folder + query["FilePath"]
            if key not in self.modelscope_files:
                return Answer(404, body=b'{"Code": 404, "Success": false}')
            if key.endswith(".pt"):
                return Answer(302, {"Location": f"{self.url['storage']}/{key}"})
            return _send(self.modelscope_files[key], wanted)
        listed = [
            {"Name": key.rpartition("/")[2], "Path": key.removeprefix(folder), "Type": "blob",
             "Size": len(content), "Sha256": hashlib.sha256(content).hexdigest(), "Revision": "0" * 40,
             "IsLFS": key.endswith(".pt")}
            for key, content in self.modelscope_files.items() if key.startswith(folder)
        ]  # fmt: skip
        if not listed:
            missing = {"Code": 10010205001, "Success": False, "Message": "record not found", "Data": None}
            return Answer(404, body=json.dumps(missing).encode())
        listed.append({"Name": "examples", "Path": "examples", "Type": "tree", "Size": 0, "Sha256": ""})
        return Answer(
            body=json.dumps({"Code": 200, "Success": True, "Data": {"Files": listed}}).encode(),
            headers={"Content-Type": "application/json"},
        )


def _send(content: bytes | None, wanted: str | None) -> Answer:
    if content is None:
        return Answer(404, body=b"Not Found")
    found = re.fullmatch(r"bytes=(\d+)-", wanted or "")
    if not found:
        return Answer(body=content)
    start = int(found[1])
    if start >= len(content):
        return Answer(416, {"Content-Range": f"bytes */{len(content)}"})
    span = f"bytes {start}-{len(content) - 1}/{len(content)}"
    return Answer(206, {"Content-Range": span}, content[start:])
