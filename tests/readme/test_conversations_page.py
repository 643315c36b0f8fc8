"""What the page on conversations shows works as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_snippet_runs_on_the_demo(tmp_path, monkeypatch):
    pytest.importorskip("pyannote.core")
    pytest.importorskip("matplotlib")
    page = (ROOT / "docs" / "conversations.md").read_text(encoding="utf-8")
    finish, annotate, cut = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    samples, rate = soundfile.read(ROOT / "demo" / "mixture.flac", dtype="float32")
    soundfile.write(tmp_path / "meeting.wav", samples[: 8 * rate], rate)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(finish, names)
    talkers = names["report"].conversation["talkers"]
    assert sum(talkers.values()) > 5  # two read for 8 s
    exec(annotate, names)
    assert names["annotation"].label_duration("speaker1") == pytest.approx(talkers["speaker1"], abs=0.05)
    exec(cut, names)
    assert len(names["pieces"]) == len(names["talk"]["segments"])
    for (start, talker, piece, piece_rate), segment in zip(
        names["pieces"], names["talk"]["segments"], strict=True
    ):
        assert (start, talker) == (segment["start"], segment["talker"])
        assert len(piece) == pytest.approx(piece_rate * (segment["end"] - start), abs=2)
        assert np.isfinite(piece).all()
