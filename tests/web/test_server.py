"""The server hands out the page and nothing else, to this computer and nobody else."""

import http.client
import json
import socket
import threading

import pytest

from flasepformer.web import PageServer, page_files
from flasepformer.web import server as server_module


@pytest.fixture(scope="module")
def server():
    with PageServer(page_files(), port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, path="/", method="GET", body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer, content


def test_the_page_is_at_the_root_and_every_listed_file_has_the_size_of_its_content(server):
    answer, content = ask(server)
    assert answer.status == 200
    assert content == server.files["index.html"].read()
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    listed = json.loads(ask(server, "/files.json")[1])["files"]
    assert set(listed) == set(page_files()) - {"files.json"}
    for name in listed:
        answer, content = ask(server, f"/{name}", "HEAD")
        assert (answer.status, content) == (200, b"")
        assert int(answer.headers["Content-Length"]) == server.files[name].size


def test_every_answer_keeps_the_page_from_talking_to_anybody_else(server):
    for path in ("/", "/worker.js", "/ort/ort-wasm-simd-threaded.mjs", "/nothing"):
        headers = ask(server, path)[0].headers
        policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["connect-src"] == "'self'"
        assert policy["script-src"] == "'self' 'wasm-unsafe-eval'"
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_the_page_states_the_same_policy_for_hosts_that_send_none():
    policy = server_module.HEADERS["Content-Security-Policy"].removesuffix("; frame-ancestors 'none'")
    assert (
        f'http-equiv="Content-Security-Policy" content="{policy}"'
        in page_files()["index.html"].read().decode()
    )


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "CONNECT"])
def test_nothing_can_be_sent_to_the_server(server, method):
    answer, _ = ask(server, "/index.html", method, b"audio")
    assert answer.status == 405
    assert answer.headers["Allow"] == "GET, HEAD"


def test_a_body_is_refused_unread(server):
    assert ask(server, "/", "GET", b"audio")[0].status == 413


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "localhost:1", "127.0.0.1.evil.example", "", "127.0.0.1:x"],
)
def test_another_host_name_is_refused(server, host):
    answer, content = ask(server, Host=host.format(port=server.server_address[1]))
    assert answer.status == 403
    assert b"does not answer to that name" in content


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "LOCALHOST", "[::1]"])
def test_the_names_of_this_computer_are_answered(server, host):
    assert ask(server, Host=f"{host}:{server.server_address[1]}")[0].status == 200


def test_a_foreign_origin_is_refused_and_the_pages_own_is_not(server):
    own = server.url.removesuffix("/")
    assert ask(server, Origin=own)[0].status == 200
    for origin in ("https://evil.example", "null", own.replace("http", "ftp") + "1"):
        assert ask(server, Origin=origin)[0].status == 403
    assert ask(server, Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors")[0].status == 403
    assert ask(server, Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0].status == 200  # a link


@pytest.mark.parametrize(
    "path",
    [
        "/../files.py", "/..%2ffiles.py", "/%2e%2e/files.py", "/ort/../../files.py", "//etc/passwd",
        "/etc/passwd", "/%2fetc%2fpasswd", "/index.html%00", "/ort", "/ort/", "/..\\files.py", "/\x7f",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_the_page(server, path):
    port = server.server_address[1]
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n".encode()
        )
        assert connection.makefile("rb").readline().split()[1] == b"404"


def test_what_is_no_request_is_refused_in_a_line(server):
    with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=10) as connection:
        connection.sendall(b"hello there, server, my friend\r\n\r\n")
        assert b" 400 " in connection.makefile("rb").readline()


def test_more_connections_than_fit_are_told_to_come_again(monkeypatch):
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 1)
    monkeypatch.setattr(server_module._Handler, "timeout", 0.3)
    with PageServer(page_files(), port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        silent = socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=10)
        with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=10) as second:
            assert second.makefile("rb").readline().startswith(b"HTTP/1.1 503")
        assert silent.recv(1) == b""  # closed, as it has said nothing
        silent.close()
        server.shutdown()
        thread.join()
