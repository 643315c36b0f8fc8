import os

import pytest

from flasepformer.files.scratch import scratch_file


def test_a_file_of_the_wanted_size_has_no_name(tmp_path):
    with scratch_file(4096, tmp_path) as file:
        assert os.fstat(file.fileno()).st_size == 4096
        file.write(b"said")
        file.seek(0)
        assert file.read(6) == b"said\0\0"
        assert list(tmp_path.iterdir()) == []


def test_room_that_the_disk_does_not_have_is_an_error_at_once_and_no_file_stays_open(tmp_path):
    with open(os.devnull) as file:
        before = file.fileno()  # the lowest number that is free
    with pytest.raises(OSError, match=r"."):
        scratch_file(1 << 60, tmp_path)
    with open(os.devnull) as file:
        assert file.fileno() == before
