import os
import signal

import numpy as np
import pytest
from tests.processes import start

from flasepformer.data import SpeechStore, read_utterances


def test_an_utterance_comes_back_at_the_rate_asked_for_with_rms_1(tmp_path, write_tone):
    write_tone(tmp_path / "a/1.wav", 500, 1.0, rate=16000, amplitude=0.01)
    write_tone(tmp_path / "b/1.wav", 700, 0.5)
    store = SpeechStore.load(read_utterances(tmp_path), 8000)
    assert store.offsets.tolist() == [0, 8000, 12000]
    time = np.arange(8000) / 8000
    expected = np.sqrt(2) * np.sin(2 * np.pi * 500 * time)
    assert np.abs(store.waveform(0) - expected)[100:-100].max() < 2e-3
    np.testing.assert_array_equal(store.waveform(0, 7000, 9999), store.waveform(0)[7000:8000])


def test_one_corrupt_item_in_a_hundred_is_skipped_and_counted(tmp_path, write_tone):
    for k in range(99):
        write_tone(tmp_path / f"a/{k:02d}.wav", 500, 0.02)
    damaged = tmp_path / "a/50a.wav"
    damaged.write_text("<!DOCTYPE html><html>404 not found</html>")
    store = SpeechStore.load(read_utterances(tmp_path), 8000)
    assert (len(store), store.n_corrupt) == (99, 1)
    assert damaged not in [utterance.path for utterance in store.utterances]

    write_tone(tmp_path / "a/50b.wav", 500, 0.02, amplitude=0.0)  # silence has no level: the second of 101
    utterances = read_utterances(tmp_path)
    with pytest.raises(ValueError, match=r"2 of 101 utterances are corrupt, more than 1%.*50a.wav.*50b.wav"):
        SpeechStore.load(utterances, 8000)
    damaged.unlink()  # listed, but lost since
    assert SpeechStore.load(utterances, 8000, max_corrupt_share=0.02).n_corrupt == 2


def test_the_cache_is_mapped_and_gives_the_same_samples(tmp_path, write_tone):
    write_tone(tmp_path / "speech/a/1.wav", 500, 0.5)
    utterances = read_utterances(tmp_path / "speech")
    decoded = SpeechStore.load(utterances, 8000, cache=tmp_path / "cache")
    (tmp_path / "speech/a/1.wav").write_bytes(b"x" * os.path.getsize(tmp_path / "speech/a/1.wav"))
    again = SpeechStore.load(utterances, 8000, cache=tmp_path / "cache")
    assert isinstance(again.samples, np.memmap)
    np.testing.assert_array_equal(again.waveform(0), decoded.waveform(0))


def test_another_rate_and_a_changed_file_are_decoded_anew(tmp_path, write_tone):
    write_tone(tmp_path / "speech/a/1.wav", 500, 0.5)
    utterances = read_utterances(tmp_path / "speech")
    lengths = [
        len(SpeechStore.load(utterances, rate, cache=tmp_path / "cache").samples) for rate in (8000, 4000)
    ]
    write_tone(tmp_path / "speech/a/1.wav", 500, 0.25)
    lengths.append(len(SpeechStore.load(utterances, 8000, cache=tmp_path / "cache").samples))
    assert lengths == [4000, 2000, 2000]


def test_a_kill_while_the_cache_is_written_leaves_none(tmp_path, write_tone):
    write_tone(tmp_path / "speech/a/1.wav", 500, 0.5)
    process = start(load_until_killed, tmp_path / "speech", tmp_path / "cache")
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL
    assert [path.name[0] for path in (tmp_path / "cache").iterdir()] == ["."]  # a temporary name only
    store = SpeechStore.load(read_utterances(tmp_path / "speech"), 8000, cache=tmp_path / "cache")
    assert store.length(0) == 4000


def load_until_killed(speech, cache):
    """Die when the cache is written and about to be safe on the disk."""
    os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
    SpeechStore.load(read_utterances(speech), 8000, cache=cache)
