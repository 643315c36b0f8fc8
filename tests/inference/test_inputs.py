import io
import os
import tempfile
import threading
from pathlib import Path

import pytest

from flasepformer.audio import AudioError
from flasepformer.inference.inputs import as_regular_file


def test_a_regular_file_is_read_where_it_is(tmp_path):
    (tmp_path / "talk.wav").write_bytes(b"talk")
    with as_regular_file(str(tmp_path / "talk.wav")) as path:
        assert path == tmp_path / "talk.wav"


def test_a_pipe_is_copied_for_as_long_as_it_is_needed(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b"talk" * 1_000_000,))
    writer.start()
    with as_regular_file(pipe) as path:
        assert path.read_bytes() == b"talk" * 1_000_000
    writer.join()
    assert not path.exists()


def test_more_than_the_limit_is_refused_and_leaves_no_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with (
        pytest.raises(AudioError, match="stream: more than 1e-06 GB; save"),
        as_regular_file(io.BytesIO(bytes(1001)), limit=1000),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
    with as_regular_file(io.BytesIO(bytes(1000)), limit=1000) as path:
        assert path.stat().st_size == 1000


def test_an_unreadable_stream_is_named_and_not_its_copy():
    with pytest.raises(AudioError, match=r"^stream: not audio$"), as_regular_file(io.BytesIO(b"x")) as path:
        raise AudioError(f"{path}: not audio")


def test_a_missing_file_is_the_system_s_error():
    with pytest.raises(FileNotFoundError), as_regular_file(Path("nowhere.wav")):
        pass
