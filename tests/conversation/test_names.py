import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from flasepformer.conversation import Conversation

RATE = 16000


@pytest.fixture(scope="module")
def talk(tmp_path_factory, passed_of):
    """Two who read in turns, and the first seconds of each as files; what is left of each is the talk."""
    demo = Path(__file__).parents[2] / "demo"
    voices = [soundfile.read(demo / f"source{number}.flac", dtype="float32")[0] for number in (1, 2)]
    folder = tmp_path_factory.mktemp("known")
    n = 6 * RATE
    for name, voice in zip(("ann", "bo"), voices, strict=True):
        soundfile.write(folder / f"{name}.wav", voice[:n], RATE)
    sources = np.zeros((2, 4 * 2 * RATE), np.float32)
    for turn in range(4):
        at = slice(turn * 2 * RATE, (turn + 1) * 2 * RATE)
        sources[turn % 2, at] = 0.3 * voices[turn % 2][n + turn * RATE : n + (turn + 2) * RATE]
    return folder, passed_of(sources.sum(0), RATE, sources[:, ::2].copy())


@pytest.mark.slow
def test_a_known_voice_names_its_track_and_a_stranger_stays_a_number(talk):
    folder, passed = talk
    finished = Conversation(names=(("Bo", str(folder / "bo.wav")),)).finish(passed)
    assert finished.labels == ("speaker1", "Bo")
    assert list(finished.facts["talkers"]) == ["speaker1", "Bo"]
    assert finished.facts["names"]["Bo"] > 0.42


@pytest.mark.slow
def test_both_known_voices_name_both_tracks_in_any_order(talk):
    folder, passed = talk
    known = (("Bo", str(folder / "bo.wav")), ("Ann", str(folder / "ann.wav")))
    conversation = Conversation(names=known, segments=True)
    finished = conversation.finish(passed)
    assert finished.labels == ("Ann", "Bo")
    assert set(finished.labels) <= set(conversation.labels(2))
    assert json.dumps(conversation.options)


def test_names_that_cannot_be_told_apart_are_refused():
    for names in ((("Ann", "a"), ("Ann", "b")), ((" ", "a"),), (("speaker1", "a"),)):
        with pytest.raises(ValueError, match="names must differ"):
            Conversation(names=names)


@pytest.mark.slow
def test_silence_is_no_enrolment(talk, tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(5 * RATE), RATE)
    with pytest.raises(ValueError, match="take 5 s or more"):
        Conversation(names=(("Ann", str(tmp_path / "silence.wav")),)).finish(talk[1])
