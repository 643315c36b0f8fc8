"""A file is under its name whole or not at all."""

import pytest

from flasepformer.files import write_whole, written_whole


def test_a_file_appears_when_all_of_it_is_written(tmp_path):
    with written_whole(tmp_path / "a.txt") as temporary:
        temporary.write_bytes(b"half")
        assert not (tmp_path / "a.txt").exists()
    assert (tmp_path / "a.txt").read_bytes() == b"half"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_after_an_error_the_file_before_stays_and_nothing_else(tmp_path):
    write_whole(tmp_path / "a.txt", "before\r\nä")

    def break_off():
        with written_whole(tmp_path / "a.txt") as temporary:
            temporary.write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        break_off()
    assert (tmp_path / "a.txt").read_bytes() == b"before\r\n\xc3\xa4"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_that_cannot_be_written_is_an_error_not_an_empty_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "missing" / "a.txt", "text")
    with pytest.raises(FileNotFoundError), written_whole(tmp_path / "a.txt"):
        pass  # nothing was written
    assert list(tmp_path.iterdir()) == []
