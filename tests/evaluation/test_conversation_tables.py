"""The tables of `benchmarks/conversations.sh`, from scores and timelines that are known."""

import csv
import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from flasepformer.evaluation import EvaluationRow, write_scores

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "conversations.py"
spec = spec_from_file_location("conversations", SCRIPT)
conversations = module_from_spec(spec)
spec.loader.exec_module(conversations)

TIMELINE = """mixture,track,speaker,start_s,end_s,path,lufs
x,s1,anna,0.0,6.0,a1.wav,-30
x,s1,anna,6.0,12.0,a1.wav,-30
x,s2,bert,9.0,15.0,b1.wav,-30
y,s1,carl,0.0,12.0,c1.wav,-30
y,s2,dora,6.0,12.0,d1.wav,-30
y,s2,dora,12.0,15.0,d2.wav,-30
"""


@pytest.fixture
def work(tmp_path):
    """Two conversations of 0.5 min; in chunks the second one is 1 dB worse, and has a warning."""
    sets = tmp_path / "sets" / "0.5"
    sets.mkdir(parents=True)
    (sets / "timeline.csv").write_text(TIMELINE)
    for mode, loss in (("whole", 0.0), ("chunks", 1.0)):
        folder = tmp_path / "scores" / "0.5" / mode
        folder.mkdir(parents=True)
        rows = [
            EvaluationRow(
                name=name,
                seconds=30.0,
                compute_seconds=1.0,
                scores={
                    "si_snr": (gain, gain),
                    "si_snr_improvement": (gain, gain),
                    "mixture_si_snr": (0.0, 0.0),
                    "confusion": (0.25 * loss * late,),
                },
                warnings="two talkers" if late * loss else "",
            )
            for name, gain, late in (("x", 10.0, 0), ("y", 8.0 - loss, 1))
        ]
        write_scores(folder / "scores.csv", rows)
        separation = {"mode": mode, "chunk_seconds": 30.0, "overlap_seconds": 5.0}
        model = {"name": "tiny", "weights_sha256": "0123456789abcdef"}
        facts = {"model": model, "separation": separation, "versions": {"torch": "2"}}
        (folder / "summary.json").write_text(json.dumps(facts))
    return tmp_path


def test_what_is_said_is_read_from_the_timeline(work):
    said = conversations.read_speech(work / "sets/0.5/timeline.csv", 0.5)
    assert said.overlap == pytest.approx((3 / 15 + 6 / 15) / 2)
    assert said.pauses == pytest.approx(0.5)
    assert said.talking_seconds == pytest.approx((12 + 6 + 12 + 9) / 4)
    assert said.repetitions == pytest.approx((2 + 1 + 1 + 1) / 4)


def test_the_tables_hold_the_means_and_the_paired_difference(work):
    conversations.write_tables(work, work / "out", "sh the-script tiny")
    page = (work / "out/conversations.md").read_text()
    assert "| 0.5 min | 2 | whole | 9.00 [8.00, 10.00] | n/a | 0.0 % [0.0 %, 0.0 %] | 0.00 |  |" in page
    assert "| 0.5 min | 2 | chunks | 8.50 [7.00, 10.00] | n/a | 12.5 % [0.0 %, 25.0 %] | 0.00 | 1 |" in page
    assert "| 0.5 min | -0.50 [-1.00, +0.00] | n/a | +12.5 % [+0.0 %, +25.0 %] |" in page
    assert "| 0.5 min | 30 % | 50 % | 10 s | 1.2 times |" in page
    assert "Model `tiny`, weights 0123456789ab. Chunks of 30 s, 5 s in common." in page
    assert page.endswith("    sh the-script tiny\n")
    with (work / "out/conversations.csv").open() as file:
        whole, chunks = csv.DictReader(file)
    assert (whole["SI-SNRi"], chunks["SI-SNRi"], chunks["SDRi"]) == ("9.000", "8.500", "n/a")
    assert (chunks["confusion"], chunks["with_doubtful_joins"]) == ("0.125", "1")
    with (work / "out/scores.csv").open() as file:
        assert [(row["mode"], row["name"], row["SI-SNRi"]) for row in csv.DictReader(file)] == [
            ("whole", "x", "10.000"), ("whole", "y", "8.000"),
            ("chunks", "x", "10.000"), ("chunks", "y", "7.000"),
        ]  # fmt: skip


def test_a_conversation_that_failed_is_named(work):
    broken = [EvaluationRow(name="x", error="it is HTML")]
    write_scores(work / "scores/0.5/whole/scores.csv", broken)
    with pytest.raises(ValueError, match=r"0.5 minutes, whole: \('x', 'it is HTML'\)"):
        conversations.write_tables(work, work / "out", "")
