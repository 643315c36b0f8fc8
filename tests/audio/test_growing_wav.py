"""A WAV file that grows can be read at every moment."""

import errno
import os
import resource
import signal

import numpy as np
import pytest
import soundfile

from flasepformer.audio.growing_wav import GrowingWav


def test_after_every_block_the_file_holds_all_of_them(tmp_path):
    samples = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    with GrowingWav(tmp_path / "a.wav", 11025) as file:
        assert soundfile.info(tmp_path / "a.wav").frames == 0
        for first in range(0, 1000, 250):
            file.write(samples[first : first + 250])
            read, rate = soundfile.read(tmp_path / "a.wav", dtype="float32")
            assert (rate, len(read)) == (11025, first + 250)
            assert np.array_equal(read, samples[: first + 250])


def test_a_file_that_exists_stays_unless_asked(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        GrowingWav(tmp_path / "a.wav", 8000)
    assert (tmp_path / "a.wav").read_bytes() == b"mine"
    GrowingWav(tmp_path / "a.wav", 8000, overwrite=True).close()
    assert soundfile.info(tmp_path / "a.wav").frames == 0


def test_when_there_is_no_more_room_what_was_written_is_whole(tmp_path):
    samples = np.arange(1000, dtype=np.float32)
    before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with GrowingWav(tmp_path / "a.wav", 8000) as file:
        file.write(samples)
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[0][1]))
        try:
            with pytest.raises(OSError) as failure:  # noqa: PT011 (the number is what tells)
                file.write(samples)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before[0])
            signal.signal(signal.SIGXFSZ, before[1])
    assert failure.value.errno == errno.EFBIG
    assert np.array_equal(soundfile.read(tmp_path / "a.wav", dtype="float32")[0], samples)
    assert os.path.getsize(tmp_path / "a.wav") == 80 + 4000


def test_beyond_4_gib_it_is_an_rf64_file(tmp_path):
    n_before = (1 << 30) - 50  # just below the limit, as a hole in the file
    with GrowingWav(tmp_path / "a.wav", 48000) as file:
        file._write_header(n_before)
        file.write(np.ones(100, np.float32))
        info = soundfile.info(tmp_path / "a.wav")
        assert (info.format, info.frames) == ("RF64", n_before + 100)
        with soundfile.SoundFile(tmp_path / "a.wav") as sound:
            sound.seek(n_before)
            assert np.array_equal(sound.read(), np.ones(100))
