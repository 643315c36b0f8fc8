import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flasepformer.conversation import (
    Segment,
    as_audacity_labels,
    as_json,
    as_rttm,
    as_webvtt,
    overlaps_of,
    segments_of,
)

TALK = [Segment(0.0, 2.0, "Ann"), Segment(1.5, 3.02, "Bo B"), Segment(3.5, 4.0, "Ann")]


def test_segments_are_the_runs_of_frames_and_end_with_the_recording():
    active = np.array([[1, 1, 0, 1, 1], [0, 1, 1, 0, 0]], bool)
    assert segments_of(active, ["Ann", "Bo"], seconds=0.095) == [
        Segment(0.0, 0.04, "Ann"),
        Segment(0.02, 0.06, "Bo"),
        Segment(0.06, 0.095, "Ann"),
    ]


@given(st.lists(st.lists(st.booleans(), min_size=30, max_size=30), min_size=1, max_size=3))
def test_overlaps_are_the_frames_in_which_two_speak(rows):
    active = np.array(rows, bool)
    overlaps = overlaps_of(segments_of(active, [f"speaker{k}" for k in range(len(rows))]))
    together = np.zeros(30, bool)
    for start, end, who in overlaps:
        first, last = round(start * 50), round(end * 50)
        assert (active[:, first:last].sum(0) == len(who)).all()
        assert not together[first:last].any()
        together[first:last] = True
    assert (together == (active.sum(0) >= 2)).all()


def test_a_player_and_an_editor_read_the_same_times():
    assert as_webvtt(TALK).startswith("WEBVTT\n\n00:00:00.000 --> 00:00:02.000\n<v Ann>Ann</v>\n\n")
    assert as_audacity_labels(TALK).splitlines()[1] == "1.500000\t3.020000\tBo B"


def test_json_has_segments_overlaps_and_the_time_of_everybody():
    content = json.loads(as_json(TALK, "talk", 5.0))
    assert content["talkers"] == {"Ann": {"seconds": 2.5}, "Bo B": {"seconds": 1.52}}
    assert content["overlaps"] == [{"start": 1.5, "end": 2.0, "talkers": ["Ann", "Bo B"]}]
    assert content["segments"][2] == {"start": 3.5, "end": 4.0, "talker": "Ann"}


def test_names_with_markup_cannot_break_a_caption():
    assert "<v a&lt;/v&gt; &amp; b>" in as_webvtt([Segment(0.0, 1.0, "a</v>\n& b")])


def test_nobody_gives_files_that_are_empty_and_valid():
    assert as_rttm([], "talk") == as_audacity_labels([]) == ""
    assert as_webvtt([]) == "WEBVTT\n"
    assert json.loads(as_json([], "talk", 5.0))["segments"] == []


def test_pyannote_reads_the_rttm_and_finds_half_a_second_missing_of_four(tmp_path):
    pytest.importorskip("pyannote.metrics")
    from pyannote.core import Annotation
    from pyannote.core import Segment as Span
    from pyannote.database.util import load_rttm
    from pyannote.metrics.diarization import DiarizationErrorRate

    (tmp_path / "talk.rttm").write_text(as_rttm(TALK[:2], "talk"))
    found = load_rttm(tmp_path / "talk.rttm")["talk"]
    reference = Annotation(uri="talk")
    reference[Span(0.0, 2.5)] = "one"
    reference[Span(1.5, 3.02)] = "other"
    assert found.labels() == ["Ann", "Bo_B"]
    assert DiarizationErrorRate()(reference, found) == pytest.approx(0.5 / 4.02, abs=1e-6)
