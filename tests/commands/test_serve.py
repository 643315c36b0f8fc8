"""`flasepformer serve` and `flasepformer page`."""

import re
import signal
import socket
import subprocess
import sys
import urllib.request

from typer.testing import CliRunner

from flasepformer.cli import app


def test_serve_says_where_the_page_is_answers_there_and_ends_when_interrupted():
    command = [sys.executable, "-u", "-m", "flasepformer", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().strip()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
            with urllib.request.urlopen(url, timeout=20) as answer:
                assert b"<title>FLASepformer</title>" in answer.read()
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 130
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()


def test_serve_names_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, ["serve", "--port", str(port)])
    assert result.exit_code == 3
    assert f"cannot listen on 127.0.0.1 port {port}" in result.stderr


def test_page_writes_the_page_and_refuses_a_folder_of_something_else(tmp_path):
    result = CliRunner().invoke(app, ["page", str(tmp_path / "page")])
    assert result.exit_code == 0
    assert (tmp_path / "page/index.html").is_file()
    result = CliRunner().invoke(app, ["page", str(tmp_path)])
    assert result.exit_code == 2
    assert "something else" in result.stderr
