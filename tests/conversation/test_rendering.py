import tracemalloc
from functools import partial

import numpy as np
import pytest

from flasepformer.conversation import Conversation
from flasepformer.inference.finishing import Passed

by_levels = partial(Conversation, activity="levels")


def db(power, against):
    return 10 * np.log10(np.mean(np.square(power)) / np.mean(np.square(against)) + 1e-30)


def whole(finished, passed):
    return finished.tracks(0, passed.n_samples)


def test_where_one_talks_the_track_is_the_recording_to_the_bit_and_the_other_is_silent(talk):
    passed, recording, _ = talk
    one, other = whole(by_levels().finish(passed), passed)
    alone = slice(round(1.1 * 16000), round(2.5 * 16000))
    assert (one[alone] == recording[alone]).all()
    assert not other[alone].any()
    alone = slice(round(4.5 * 16000), round(5.9 * 16000))
    assert (other[alone] == recording[alone]).all()
    assert not one[alone].any()


def test_where_two_talk_the_tracks_are_the_estimates_and_share_what_lies_above_them(talk):
    passed, recording, _ = talk
    tracks = whole(by_levels().finish(passed), passed)
    both = slice(round(3.2 * 16000), round(3.9 * 16000))
    estimates = passed.filtered_at_rate(0, passed.n_samples)
    own = tracks - estimates
    assert db(own[:, both].sum(0) + passed.mixture_at_rate(0, passed.n_samples)[both] - recording[both],
              recording[both]) < -100  # fmt: skip
    assert (np.mean(np.square(own[:, both]), -1) > 1e-6).all()


def test_where_nobody_talks_nothing_is_invented(talk):
    passed, _, _ = talk
    tracks = whole(by_levels().finish(passed), passed)
    assert not tracks[:, : round(0.7 * 16000)].any()
    assert not tracks[:, round(6.5 * 16000) :].any()


def test_tracks_and_residual_add_up_to_the_recording(talk):
    passed, recording, _ = talk
    finished = by_levels(residual=True).finish(passed)
    assert finished.labels == ("speaker1", "speaker2", "residual")
    assert db(whole(finished, passed).sum(0) - recording, recording) < -120


def test_a_floor_keeps_so_much_of_the_estimate(talk):
    passed, _, _ = talk
    tracks = whole(by_levels(floor_db=-20.0).finish(passed), passed)
    alone = slice(round(1.2 * 16000), round(2.4 * 16000))
    estimates = passed.filtered_at_rate(0, passed.n_samples)
    assert db(tracks[1, alone], estimates[1, alone]) == pytest.approx(-20, abs=2.0)  # and a share of the top


@pytest.mark.parametrize("length", [7777, 16000])
def test_pieces_of_any_length_give_the_same_tracks(talk, length):
    passed, _, _ = talk
    finished = by_levels(residual=True).finish(passed)
    pieces = [
        finished.tracks(first, min(first + length, passed.n_samples))
        for first in range(0, passed.n_samples, length)
    ]
    assert db(np.concatenate(pieces, -1) - whole(finished, passed), whole(finished, passed)) < -90


def test_fades_make_no_click(passed_of):
    """Two tones that come and go: what the fades add above the tones stays below -70 dB."""
    rate = 16000
    time = np.arange(6 * rate) / rate
    sources = 0.3 * np.stack([np.sin(2 * np.pi * 400 * time), np.sin(2 * np.pi * 700 * time)])
    ramp = np.clip(np.minimum(time - 1, 5 - time) / 0.1, 0, 1)
    ramp = np.stack([ramp, np.clip(np.minimum(time - 2, 4 - time) / 0.1, 0, 1)])
    sources = (sources * (0.5 - 0.5 * np.cos(np.pi * ramp))).astype(np.float32)
    passed = passed_of(sources.sum(0), rate, sources[:, ::2])
    tracks = whole(by_levels().finish(passed), passed)
    window = np.hanning(1024)
    for track, source in zip(tracks, sources, strict=True):
        steps = np.lib.stride_tricks.sliding_window_view(track, 1024)[::128] * window
        above = (
            np.abs(np.fft.rfft(steps))[:, 128:]
            / np.abs(np.fft.rfft(source[2 * rate :][:1024] * window)).max()
        )
        assert 20 * np.log10(above.max()) < -70  # nothing above 2 kHz


def test_one_person_gives_one_track_and_is_said_so(babble, passed_of):
    recording = np.concatenate(
        [np.zeros(16000, np.float32), babble(3, 16000, 1), np.zeros(16000, np.float32)]
    )
    low = recording[::2]
    passed = passed_of(recording, 16000, np.stack([0.97 * low, 0.03 * low]))
    finished = by_levels(speakers="auto").finish(passed)
    assert finished.labels == ("speaker1",)
    assert finished.notes == ("one person talks in this recording: there is one track",)
    assert (whole(finished, passed)[0, 17000:63000] == recording[17000:63000]).all()


def test_two_people_give_two_tracks(talk):
    passed, _, _ = talk
    assert by_levels(speakers="auto").finish(passed).labels == ("speaker1", "speaker2")
    assert by_levels(speakers="1").finish(passed).labels == ("speaker1",)


def test_the_memory_of_a_long_conversation_is_known_before(babble):  # issue 16
    rate, seconds = 2000, 20 * 60
    noise = babble(10, rate, 1)

    def tracks(first, last):  # they take turns of 1.5 s
        times = np.arange(first, last)
        turn = times // (3 * rate // 2) % 2
        return noise[times % len(noise)] * np.stack([turn == 0, turn == 1])

    def together(first, last):
        return tracks(first, last).sum(0)

    n_samples = rate * seconds
    passed = Passed(n_samples, rate, together, n_samples, rate, 2, together, tracks)
    conversation = by_levels(segments=True, residual=True)
    tracemalloc.start()
    finished = conversation.finish(passed)
    finished.tracks(0, rate)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert finished.facts["talkers"]["speaker1"] > seconds / 3
    needed = conversation.need_bytes(2, seconds) - conversation.need_bytes(2, 0)
    assert 0.5 * needed < peak < needed + 2e6
