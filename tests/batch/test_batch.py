"""Every recording exactly once, whatever happens."""

import csv
import json
import threading
import time
from multiprocessing import active_children
from pathlib import Path

import pytest
from tests.batch.killing import Killing
from tests.processes import CONTEXT, start_command
from typer.testing import CliRunner

from flasepformer.batch import (
    Bucket,
    Claims,
    Recording,
    Work,
    estimate_seconds,
    longest_first,
    read_list,
    run_locally,
    write_manifest,
)
from flasepformer.batch.tries import DIED, TryBook
from flasepformer.cli import app
from flasepformer.errors import InputError
from flasepformer.inference.identity import file_identity


@pytest.fixture
def work(separator, tmp_path):
    """What is done to each recording, with tracks in `out`."""

    def make(run="first", **changes):
        known = {"options": {}, "out": str(tmp_path / "out"), "state": str(tmp_path / "out/.batch")}
        return Work(separator, **{**known, **changes}, run=run)

    return make


def recordings(talks):
    return [Recording(str(path), "", path.stem, estimate_seconds(path)) for path in sorted(talks.iterdir())]


def test_tracks_are_committed_once_and_a_second_run_finds_them_by_their_reports(work, talks, tmp_path):
    first, second = work("first").worker(), work("second").worker()
    done = [first(recording) for recording in recordings(talks)]
    assert [outcome.state for outcome in done] == ["done"] * 5
    assert [outcome.seconds for outcome in done] == [0.1, 0.2, 0.3, 0.4, 0.5]
    (tmp_path / "out/2_separation.json").unlink()
    (tmp_path / "out/2_speaker1.wav").unlink()
    (tmp_path / "out/2_speaker2.wav").unlink()
    again = [second(recording) for recording in recordings(talks)]
    assert [outcome.state for outcome in again] == ["skipped", "skipped", "done", "skipped", "skipped"]
    assert [outcome.tracks for outcome in again] == [outcome.tracks for outcome in done]  # the same digests
    track = done[3].tracks[1]
    assert track.place == str(tmp_path / "out/3_speaker2.wav")
    assert track.sha256 == file_identity(tmp_path / "out/3_speaker2.wav")["sha256"]


def test_what_fails_twice_is_left_alone_until_it_changes_or_somebody_asks(work, talks, tmp_path):
    bad = talks / "bad.wav"
    bad.write_text("<html>not a recording</html>")
    recording = Recording(str(bad), "", "bad")
    outcome = work("first").worker()(recording)
    assert outcome.state == "quarantined"
    assert "looks like HTML" in outcome.error
    [book] = (tmp_path / "out/.batch/tries").iterdir()
    assert json.loads(book.read_text())["n_failed"] == 2
    before = book.stat().st_mtime_ns
    assert work("second").worker()(recording).state == "quarantined"
    assert book.stat().st_mtime_ns == before  # not tried
    assert work("third", again=True).worker()(recording).state == "quarantined"
    assert book.stat().st_mtime_ns != before
    bad.write_bytes((talks / "1.wav").read_bytes())
    assert work("fourth").worker()(recording).state == "done"
    assert not book.exists()


def test_outputs_of_another_recording_are_refused_and_no_try_is_counted(work, talks, tmp_path):
    work().worker()(Recording(str(talks / "0.wav"), "", "same"))
    outcome = work().worker()(Recording(str(talks / "1.wav"), "", "same"))
    assert outcome.state == "failed"
    assert "another recording" in outcome.error
    assert list((tmp_path / "out/.batch/tries").iterdir()) == []


def test_a_run_that_died_itself_counts_no_try_but_a_process_of_a_living_one_does(tmp_path):
    TryBook(tmp_path, "first").begin("talk", "talk.wav", "1")
    assert TryBook(tmp_path, "second").begin("talk", "talk.wav", "1")[0].n_failed == 0
    tries, was_cut_off = TryBook(tmp_path, "second").begin("talk", "talk.wav", "1")
    assert was_cut_off
    assert (tries.n_failed, tries.error, tries.over) == (1, DIED, False)
    assert TryBook(tmp_path, "second").begin("talk", "talk.wav", "1")[0].over


def test_tracks_without_a_report_are_made_anew_only_where_a_run_died_over_them(work, talks, tmp_path):
    recording = Recording(str(talks / "1.wav"), "", "1")
    work("first").worker()(recording)
    (tmp_path / "out/1_separation.json").unlink()
    assert work("second").worker()(recording).state == "failed"  # they may be somebody else's
    worker = work("third").worker()
    assert (
        worker.begin(recording)[0].n_failed == 0
    )  # and is killed between the first track's name and the report's
    assert work("fourth").worker()(recording).state == "done"


def hold(path, name, events):
    with Claims(path).hold(name) as ours:
        events.put(ours)
        time.sleep(60)


@pytest.mark.slow
def test_a_claim_keeps_others_out_and_ends_with_its_process(tmp_path):
    events = CONTEXT.Queue()
    other = CONTEXT.Process(target=hold, args=(tmp_path / "claims", "talk", events))
    other.start()
    assert events.get(timeout=30) is True
    claims = Claims(tmp_path / "claims")
    with claims.hold("talk") as ours:
        assert not ours
    with claims.hold("another talk") as ours:
        assert ours
    other.kill()
    with claims.hold("talk", wait=True) as ours:
        assert ours
    other.join()


@pytest.mark.slow
def test_a_process_that_is_killed_costs_one_try_of_its_recording_and_nothing_else(
    work, talks, tmp_path, monkeypatch
):
    monkeypatch.setattr("flasepformer.batch.local._CONTEXT", CONTEXT)  # four processes, in a moment

    def kill_the_first():
        while not (processes := active_children()):
            time.sleep(0.01)
        processes[0].kill()  # while it imports, before it has what it needs

    threading.Thread(target=kill_the_first).start()
    options = {"finisher": Killing(always="3", once="1", mark=str(tmp_path / "mark"))}
    outcomes = list(run_locally(work(options=options), longest_first(recordings(talks)), 1))
    states = {outcome.recording.name: outcome.state for outcome in outcomes}
    assert states == {"0": "done", "1": "done", "2": "done", "3": "quarantined", "4": "done"}
    assert len(outcomes) == 5
    assert (tmp_path / "mark").exists()  # recording 1 did kill its process, and was done at the second try
    assert next(outcome.error for outcome in outcomes if outcome.state == "quarantined") == DIED


@pytest.mark.slow
def test_a_run_whose_processes_are_all_killed_is_ended_by_the_same_command(
    checkpoint, talks, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    words = ["batch", talks, "--out", out, "--model", checkpoint, "--jobs", "1"]
    run = start_command(*words)
    deadline = time.monotonic() + 60
    while not any(out.glob("*_separation.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    run.kill()
    run.join()
    monkeypatch.setattr("flasepformer.batch.local._CONTEXT", CONTEXT)
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    with (out / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    assert {row["state"] for row in rows} <= {"done", "skipped"}
    assert len({row["track"] for row in rows}) == 10
    assert all(file_identity(Path(row["track"]))["sha256"] == row["sha256"] for row in rows)
    assert not [path for path in out.iterdir() if path.name.startswith(".flasepformer-")]


def test_a_list_a_pattern_and_an_input_that_is_missing_in_one_command(
    checkpoint, talks, tmp_path, monkeypatch
):
    monkeypatch.setattr("flasepformer.batch.local._CONTEXT", CONTEXT)
    (talks / "list.csv").write_text("input,note\n0.wav,first\n1.wav,\n")
    bad = talks / "bad.wav"
    bad.write_bytes(b"")
    out = tmp_path / "out"
    words = ["batch", talks / "list.csv", talks / "[2b]*.wav", talks / "gone.wav", "--out", out]
    result = CliRunner().invoke(
        app, [str(word) for word in [*words, "--model", checkpoint, "-j", "1"]], catch_exceptions=False
    )
    assert result.exit_code == 1
    assert "3 done, 0 skipped, 2 failed" in result.stderr
    with (out / "manifest.csv").open(newline="") as file:
        states = {row["input"].rpartition("/")[2]: row["state"] for row in csv.DictReader(file)}
    assert states == {
        "0.wav": "done", "1.wav": "done", "2.wav": "done", "bad.wav": "quarantined", "gone.wav": "failed",
    }  # fmt: skip


def test_the_longest_begin_first(talks):
    assert [recording.name for recording in longest_first(recordings(talks))] == ["4", "3", "2", "1", "0"]


def test_a_list_without_recordings_is_refused_with_its_columns(tmp_path):
    (tmp_path / "list.csv").write_text("who,when\nann,now\n")
    with pytest.raises(InputError, match="got who, when"):
        read_list(tmp_path / "list.csv")


def test_a_list_may_be_parquet_and_so_is_the_manifest(work, talks, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"input": ["0.wav"]}), tmp_path / "talks/list.parquet")
    assert read_list(talks / "list.parquet") == [str(talks / "0.wav")]
    outcome = work().worker()(Recording(str(talks / "0.wav"), "", "0"))
    written = write_manifest([outcome], tmp_path)
    assert [row["seconds"] for row in parquet.read_table(written[1]).to_pylist()] == [0.1, 0.1]


def test_a_bucket_has_the_tracks_with_the_report_last_and_what_is_there_is_not_done_again(
    work, talks, tmp_path, monkeypatch
):
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    for index in range(2):
        store.pipe_file(f"/talks/in/{index}.wav", (talks / f"{index}.wav").read_bytes())
    assert [place for place, _ in Bucket("memory://talks/in").found()] == [
        "memory:///talks/in/0.wav", "memory:///talks/in/1.wav",
    ]  # fmt: skip
    changes = {"out": "memory://tracks", "state": str(tmp_path / "state")}
    order = []
    put = type(store).put_file

    def noted(self, local, remote, **options):
        order.append(remote)
        put(self, local, remote, **options)

    monkeypatch.setattr(type(store), "put_file", noted)
    done = work("first", **changes).worker()(Recording("memory://talks/in/1.wav", "a", "1"))
    monkeypatch.undo()
    assert done.state == "done"
    assert [place.rpartition("/")[2] for place in order] == [
        "1_speaker1.wav", "1_speaker2.wav", "1_separation.json",
    ]  # fmt: skip
    again = work("second", **changes).worker()(Recording("memory://talks/in/1.wav", "a", "1"))
    assert again.state == "skipped"
    assert again.tracks == done.tracks
    assert done.tracks[0].place == "memory:///tracks/a/1_speaker1.wav"
    store.rm("/tracks/a/1_speaker2.wav")  # an upload that was cut off is no result
    assert work("third", **changes).worker()(Recording("memory://talks/in/1.wav", "a", "1")).state == "failed"
    store.rm("/tracks", recursive=True)
