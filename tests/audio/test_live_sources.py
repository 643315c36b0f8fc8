"""Sound devices at their edge: what is lost is counted, and an unplugged one ends the stream."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from flasepformer.audio import AudioError, RecordingFile
from flasepformer.audio.live_sources import Microphone, ReplaySource, Speaker


class PortAudio:
    """Stands for the driver: it calls back as often as the test says."""

    class PortAudioError(Exception):
        pass

    def __init__(self, broken=False):
        self.broken, self.active, self.played = broken, True, []

    def query_devices(self, device, kind):
        return {"default_samplerate": 44100.0}

    def InputStream(self, **options):
        if self.broken:
            raise self.PortAudioError("no such device")
        self.options = options
        return self

    OutputStream = InputStream

    def start(self):
        pass

    def close(self):
        self.active = False

    def deliver(self, value, n=100, overflow=False):
        status = SimpleNamespace(input_overflow=overflow)
        self.options["callback"](np.full((n, 1), value, np.float32), n, None, status)

    def unplug(self):
        self.active = False
        self.options["finished_callback"]()

    write_available = 150

    def write(self, samples):
        self.played.append(samples)


def test_a_microphone_gives_what_it_hears_until_it_is_unplugged():
    driver = PortAudio()
    microphone = Microphone(backend=driver)
    assert microphone.sample_rate == 44100
    driver.deliver(1)
    driver.deliver(2, overflow=True)
    driver.unplug()
    assert np.concatenate(list(microphone.blocks()), axis=1)[0, ::100].tolist() == [1, 2]
    assert microphone.behind == 0
    assert (microphone.n_overruns, microphone.n_lost) == (1, 0)
    assert "unplugged" in microphone.problem


def test_what_nobody_takes_in_time_is_counted_and_replaced_by_silence():
    driver = PortAudio()
    microphone = Microphone(sample_rate=8000, block_seconds=5.0, backend=driver)  # room for two blocks
    for value in (1, 2, 3, 4):
        driver.deliver(value)
    blocks = microphone.blocks()
    heard = [next(blocks), next(blocks)]
    driver.deliver(5)
    heard.append(next(blocks))
    blocks.close()
    assert microphone.n_lost == 200
    assert np.concatenate(heard, axis=1)[0, ::100].tolist() == [1, 2, 0, 0, 5]
    assert microphone.problem == ""


def test_a_speaker_never_waits_and_counts_what_has_no_room():
    driver = PortAudio()
    speaker = Speaker("usb", 8000, backend=driver)
    speaker.write(np.full(200, 3.0, np.float32))
    assert driver.played[0].shape == (150, 1)
    assert driver.played[0].max() == 1
    assert speaker.n_dropped == 50


def test_a_speaker_that_is_unplugged_drops_what_comes_and_says_so():
    driver = PortAudio()
    speaker = Speaker("usb", 8000, backend=driver)

    def fail(samples):
        raise driver.PortAudioError("device unavailable")

    driver.write = fail
    speaker.write(np.ones(100, np.float32))
    speaker.write(np.ones(50, np.float32))
    assert speaker.n_dropped == 150
    assert speaker.problem == "the device usb plays no more: device unavailable"


def test_who_is_late_takes_at_once_what_came_meanwhile():
    driver = PortAudio()
    microphone = Microphone(sample_rate=8000, block_seconds=0.1, backend=driver)
    for value in range(25):
        driver.deliver(value, 800)
    assert microphone.behind == pytest.approx(2.5)
    driver.unplug()
    blocks = list(microphone.blocks())
    assert [block.shape[1] for block in blocks] == [8000, 8000, 4000]  # a second at most
    assert np.concatenate(blocks, axis=1)[0, ::800].tolist() == list(range(25))


def test_a_device_that_cannot_be_opened_is_an_error_with_a_reason():
    with pytest.raises(AudioError, match="cannot be opened: no such device"):
        Microphone(backend=PortAudio(broken=True))


def test_a_replayed_recording_is_read_while_it_is_played(tmp_path):  # issue 16
    samples = np.random.default_rng(0).integers(-9000, 9000, (60 * 16000, 2)).astype(np.int16)
    soundfile.write(tmp_path / "long.wav", samples, 16000)
    tracemalloc.start()
    with RecordingFile(tmp_path / "long.wav", kept_bytes=0) as recording:
        source = ReplaySource(recording, speed=1e9, block_seconds=0.1)
        at = 0
        for block in source.blocks():
            assert block.shape[1] == 16000  # a second is taken at once
            assert (block == samples[at : at + block.shape[1]].T / np.float32(2**15)).all()
            at += block.shape[1]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (source.sample_rate, at) == (16000, len(samples))
    assert peak < 2_000_000  # as floats, the recording is 7.7 MB
