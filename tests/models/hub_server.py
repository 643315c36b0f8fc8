"""A Hugging Face Hub of one's own, on this machine, for the calls that `huggingface_hub` makes for us.

Two real HTTP servers: the Hub itself, and on another host the storage to which it redirects for large files.
What is pushed is kept and given back, large files under their SHA-256, small ones under the SHA-1 of git.
Faults are put in on demand, and every request is written down.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_owner"
PAGE = b"<!DOCTYPE html><html><body>Please log in to this network.</body></html>"


@dataclass
class Request:
    """What a client asked."""

    server: str
    """ "hub" or "storage"."""
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def line(self) -> str:
        return f"{self.server} {self.method} {self.path}"

    @property
    def token(self) -> str | None:
        return self.headers.get("authorization")


@dataclass
class Response:
    """What is answered; `n_sent` breaks the body off, `stalls` never answers at all."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    n_sent: int | None = None
    stalls: bool = False


Fault = Callable[[Callable[[], Response]], Response]
"""Answers in place of the server; calling what it is given does what the server would have done."""


def as_json(content, status=200, **headers):
    return Response(status, {"Content-Type": "application/json", **headers}, json.dumps(content).encode())


def refusal(status, code, message):
    return as_json({"error": message}, status, **{"X-Error-Code": code, "X-Error-Message": message})


@dataclass
class Repository:
    """Commits (each a folder of bytes), branches and tags."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, message: str, files: dict[str, bytes], reference: str = "main") -> str:
        """Add files to what a branch holds."""
        parent = self.commits.get(self.references.get(reference, ""), {})
        name = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits[name] = {**parent, **files}
        self.references[reference] = name
        self.messages.append(message)
        return name


def is_large(name: str) -> bool:
    return name.endswith(".safetensors")


def digest(name: str, content: bytes) -> str:
    if is_large(name):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class HubServer:
    """The Hub and its storage, while the `with` block lasts."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self._faults: list[tuple[re.Pattern[str], Fault, list[int]]] = []
        self._closing = threading.Event()
        self._servers = {name: self._bind(name) for name in ("hub", "storage")}
        self.url = f"http://127.0.0.1:{self._servers['hub'].server_port}"
        self.storage_url = f"http://localhost:{self._servers['storage'].server_port}"  # another host by name

    def __enter__(self) -> "HubServer":
        for server in self._servers.values():
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        for server in self._servers.values():
            server.shutdown()
            server.server_close()

    def add_fault(self, line: str, fault: Fault, times: int = 10**6) -> None:
        """Change the answers to the next requests with such a line ("hub GET /path"); the last one rules."""
        self._faults.insert(0, (re.compile(line), fault, [times]))

    def heal(self) -> None:
        """Take all faults away, and forget the requests so far."""
        self._faults.clear()
        self.requests.clear()

    def lines(self, pattern: str = "") -> list[str]:
        """Return the requests so far, as "hub GET /path"."""
        return [request.line for request in self.requests if re.search(pattern, request.line)]

    def answer(self, request: Request) -> Response:
        """Answer a request, with the fault that is due."""
        self.requests.append(request)
        for pattern, fault, left in self._faults:
            if left[0] and pattern.search(request.line):
                left[0] -= 1
                return fault(lambda: self._route(request))
        return self._route(request)

    def _bind(self, name: str) -> ThreadingHTTPServer:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # header and body in one packet: no waiting for delayed acknowledgements

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {key.lower(): value for key, value in self.headers.items()}
                response = hub.answer(Request(name, self.command, self.path, headers, body))
                if response.stalls:
                    hub._closing.wait(60)
                    self.close_connection = True
                    return
                self.send_response(response.status)
                for key, value in {"Content-Length": str(len(response.body)), **response.headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(response.body[: response.n_sent])
                if response.n_sent is not None:
                    self.close_connection = True

            do_GET = do_HEAD = do_POST = do_PUT = answer

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

        return Server(("127.0.0.1", 0), Handler)

    def _route(self, request: Request) -> Response:
        path = unquote(urlsplit(request.path).path)
        if request.server == "storage":
            return self._store(request, path)
        routes = {
            r"GET /api/models/([^/]+/[^/]+)(?:/revision/(.+))?": self._describe,
            r"(?:GET|HEAD) /([^/]+/[^/]+)/resolve/([^/]+)/(.+)": self._resolve,
            r"POST /api/repos/create": self._create,
            r"POST /api/validate-yaml": lambda request: as_json({"errors": [], "warnings": []}),
            r"POST /api/models/([^/]+/[^/]+)/preupload/(.+)": self._choose_upload,
            r"POST /([^/]+/[^/]+)\.git/info/lfs/objects/batch": self._offer_storage,
            r"POST /api/models/([^/]+/[^/]+)/commit/(.+)": self._commit,
        }
        for pattern, route in routes.items():
            if match := re.fullmatch(pattern, f"{request.method} {path}"):
                if request.method == "POST" and request.token != f"Bearer {TOKEN}":
                    return as_json({"error": "Invalid username or password."}, 401)
                return route(request, *match.groups())
        return as_json({"error": "Not found"}, 404)

    def _find(
        self, request: Request, repo_id: str, revision: str | None
    ) -> tuple[Repository, str] | Response:
        repository = self.repositories.get(repo_id)
        if repository is None or (repository.private and request.token != f"Bearer {TOKEN}"):
            return refusal(401, "RepoNotFound", "Repository not found")
        commit = repository.references.get(revision or "main", revision or "")
        if commit not in repository.commits:
            return refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository, commit

    def _describe(self, request: Request, repo_id: str, revision: str | None) -> Response:
        found = self._find(request, repo_id, revision)
        if isinstance(found, Response):
            return found
        repository, commit = found
        siblings = []
        for name, content in repository.commits[commit].items():
            sibling = {"rfilename": name, "size": len(content), "blobId": "0" * 40}
            if is_large(name):
                sibling["lfs"] = {"sha256": digest(name, content), "size": len(content), "pointerSize": 134}
            else:
                sibling["blobId"] = digest(name, content)
            siblings.append(sibling)
        gated = "manual" if repository.gated else False
        return as_json(
            {
                "id": repo_id,
                "sha": commit,
                "private": repository.private,
                "gated": gated,
                "siblings": siblings,
            }
        )

    def _resolve(self, request: Request, repo_id: str, revision: str, name: str) -> Response:
        found = self._find(request, repo_id, revision)
        if isinstance(found, Response):
            return found
        repository, commit = found
        if repository.gated and request.token != f"Bearer {TOKEN}":
            return refusal(403, "GatedRepo", f"Access to model {repo_id} is restricted.")
        if name not in repository.commits[commit]:
            return refusal(404, "EntryNotFound", "Entry not found")
        content = repository.commits[commit][name]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{digest(name, content)}"'}
        if not is_large(name):
            return self._send(request, content, headers)
        sha256 = digest(name, content)
        self.objects[sha256] = content
        return Response(
            302,
            {
                **headers,
                "ETag": '"of-the-pointer"',
                "X-Linked-Etag": f'"{sha256}"',
                "X-Linked-Size": str(len(content)),
                "Location": f"{self.storage_url}/{sha256}",
            },
        )

    def _create(self, request: Request) -> Response:
        wanted = json.loads(request.body)
        repo_id = f"{wanted['organization']}/{wanted['name']}"
        url = {"url": f"{self.url}/{repo_id}"}
        if repo_id in self.repositories:
            return as_json({"error": "You already created this model repo", **url}, 409)
        self.repositories[repo_id] = Repository(private=wanted.get("visibility") == "private")
        return as_json(url)

    def _choose_upload(self, request: Request, repo_id: str, revision: str) -> Response:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if is_large(file["path"]) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(request.body)["files"]
        ]
        return as_json({"files": files})

    def _offer_storage(self, request: Request, repo_id: str) -> Response:
        wanted = json.loads(request.body)["objects"]
        upload = {
            file["oid"]: {"upload": {"href": f"{self.storage_url}/{file['oid']}"}}
            for file in wanted
            if file["oid"] not in self.objects
        }
        objects = [
            {**file, "actions": upload[file["oid"]]} if file["oid"] in upload else file for file in wanted
        ]
        return as_json({"transfer": "basic", "objects": objects})

    def _commit(self, request: Request, repo_id: str, revision: str) -> Response:
        message, files = "", {}
        for line in request.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile" and len(self.objects.get(value["oid"], b"")) == value["size"]:
                files[value["path"]] = self.objects[value["oid"]]
            else:
                return as_json({"error": f"cannot commit {item}"}, 400)
        commit = self.repositories[repo_id].commit(message, files, revision)
        return as_json({"commitUrl": f"{self.url}/{repo_id}/commit/{commit}", "commitOid": commit})

    def _store(self, request: Request, path: str) -> Response:
        sha256 = path.removeprefix("/")
        if request.method == "PUT":
            if hashlib.sha256(request.body).hexdigest() != sha256:
                return as_json({"error": "content does not match its name"}, 400)
            self.objects[sha256] = request.body
            return Response()
        if sha256 not in self.objects:
            return as_json({"error": "no such object"}, 404)
        return self._send(request, self.objects[sha256], {"ETag": f'"{sha256}"'})

    def _send(self, request: Request, content: bytes, headers: dict[str, str]) -> Response:
        wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
        if not wanted:
            return Response(200, headers, content)
        start = int(wanted[1])
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return Response(206, {**headers, "Content-Range": span}, content[start:])
