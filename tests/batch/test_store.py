"""Into and out of an object store that speaks S3: the same promises as for folders."""

import csv
import hashlib
import os
import signal
import sys
import threading
import time

import pytest
from tests.batch.killing import Killing
from tests.batch.stores import Store
from tests.processes import start_command
from typer.testing import CliRunner

from flasepformer.batch import (
    Bucket,
    Claims,
    Leases,
    Recording,
    Work,
    buckets,
    leases,
    longest_first,
    run_locally,
)
from flasepformer.cli import app

for package in ("s3fs", "moto", "flask", "flask_cors"):
    pytest.importorskip(
        package, reason=f"{package} is missing: tests of object stores need the extra `stores`"
    )

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def server():
    made = Store()
    yield made
    made.close()


@pytest.fixture
def store(server, monkeypatch, tmp_path):
    """The server, and its buckets `talks` and `tracks`, which are there for one test."""
    for name, value in {
        "AWS_ENDPOINT_URL": server.address, "AWS_ACCESS_KEY_ID": "anybody", "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "1", "TMPDIR": str(tmp_path),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    s3fs = sys.modules["s3fs"]
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem(use_listings_cache=False)
    for name in ("talks", "tracks"):
        system.mkdir(name)
    server.requests.clear()
    yield server, system
    server.fault = lambda number, method, path: False
    for name in ("talks", "tracks"):
        system.rm(name, recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def there(store, talks):
    """The recordings, in the bucket `talks`."""
    _, system = store
    for path in talks.iterdir():
        system.pipe_file(f"talks/in/{path.name}", path.read_bytes())
    return [
        Recording(place, "", place.rpartition("/")[2].removesuffix(".wav"), n_bytes / 16000)
        for place, n_bytes in Bucket("s3://talks/in").found()
    ]


@pytest.fixture
def work(separator, tmp_path):
    """What is done to each recording, by a machine, which has a folder of its own."""

    def make(run="first", machine="here", **options):
        return Work(separator, options, "s3://tracks/out", str(tmp_path / machine), run)

    return make


def command(checkpoint, *words):
    return [
        "batch",
        "s3://talks/in",
        "--out",
        "s3://tracks/out",
        "--model",
        str(checkpoint),
        "-j",
        "1",
        *words,
    ]


def names(system, bucket="tracks"):
    return sorted(path.removeprefix(f"{bucket}/") for path in system.find(bucket))


def test_tracks_are_put_before_their_report_and_a_restart_does_what_is_missing(store, there, work):
    server, system = store
    first = work("first").worker()
    assert [first(recording).state for recording in there] == ["done"] * 5
    order = [path for method, path in server.requests if method == "PUT" and "/2_s" in path]
    assert order == [f"/tracks/out/2_{end}" for end in ("speaker1.wav", "speaker2.wav", "separation.json")]
    assert len(names(system)) == 15  # no claim is left
    for end in ("speaker1.wav", "speaker2.wav", "separation.json"):
        system.rm_file(f"tracks/out/2_{end}")
    server.requests.clear()
    again = [work("second").worker()(recording).state for recording in there]
    assert again == ["skipped", "skipped", "done", "skipped", "skipped"]
    assert sorted(server.puts(".wav") + server.puts(".json")) == order[2:] + order[:2]
    assert server.fetched(".wav") == ["/talks/in/2.wav"]


def test_what_has_changed_in_a_store_since_it_was_separated_is_fetched_and_seen(store, there, work):
    server, system = store
    done = [work("first").worker()(recording) for recording in there]
    system.pipe_file("talks/in/0.wav", system.cat_file("talks/in/1.wav"))
    system.pipe_file("talks/in/1.wav", system.cat_file("talks/in/1.wav"))  # of another date
    system.pipe_file("tracks/out/2_speaker1.wav", b"another")
    server.requests.clear()
    again = [work("second").worker()(recording) for recording in there]
    assert [outcome.state for outcome in again] == ["failed", *["skipped"] * 4]
    assert "it is of another recording" in again[0].error
    assert server.fetched(".wav") == ["/talks/in/0.wav", "/talks/in/1.wav", "/tracks/out/2_speaker1.wav"]
    digest = hashlib.sha256(b"another").hexdigest()
    assert [track.sha256 for track in again[2].tracks] == [digest, done[2].tracks[1].sha256]
    assert again[3].tracks == done[3].tracks


def test_a_claim_keeps_another_machine_out_while_it_is_renewed_and_no_longer(store, tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "RENEWAL_SECONDS", 0.2)
    monkeypatch.setattr(leases, "LEASE_SECONDS", 1.5)
    bucket = Bucket("s3://tracks/out")

    def machine(name):
        (tmp_path / name).mkdir(exist_ok=True)
        return Leases(bucket, "claims", Claims(tmp_path / name / "claims"), tmp_path / name / "machine")

    one, other = machine("one"), machine("other")
    with one.hold("talk") as ours:
        assert ours
        with other.hold("talk") as theirs:
            assert not theirs
        with other.hold("another talk") as theirs:
            assert theirs
        waiting, held = threading.Event(), []

        def wait():
            waiting.set()
            with other.hold("talk", wait=True) as theirs:
                held.append((theirs, time.monotonic()))

        thread = threading.Thread(target=wait)
        thread.start()
        waiting.wait()
        time.sleep(2.5)  # longer than a lease
        assert held == []
        given_up = time.monotonic()
    thread.join(timeout=30)
    assert held[0][0] is True
    assert held[0][1] > given_up
    assert names(store[1]) == []

    dead = one._obtained("talk", False)  # of a machine that goes down now: nobody renews it
    assert dead.mark
    with other.hold("talk") as theirs:
        assert not theirs
    began = time.monotonic()
    with other.hold("talk", wait=True) as theirs:
        assert theirs
    assert time.monotonic() - began > 1.5
    one._obtained("talk", False)
    with machine("one").hold("talk") as again:
        assert again  # the machine itself need not wait: it holds the lock that the dead one had


def test_of_two_who_take_a_dead_claim_over_one_succeeds(store):
    bucket = Bucket("s3://tracks")
    mark = bucket.put_new(b"dead", "claim")
    assert bucket.put_new(b"late", "claim") is None
    assert bucket.put_over(b"one", "claim", mark)
    assert bucket.put_over(b"other", "claim", mark) is None
    assert bucket.read("claim")[0] == b"one"
    bucket.remove("claim")
    assert bucket.put_over(b"other", "claim", mark) is None
    assert bucket.read("claim") is None


@pytest.mark.long
def test_two_machines_that_share_a_bucket_only_do_each_recording_once(store, there, work):
    server, system = store
    outcomes = []

    def run(machine):
        outcomes.extend(run_locally(work(machine, machine), longest_first(there), 1))

    threads = [threading.Thread(target=run, args=(machine,)) for machine in ("one", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcome.state for outcome in outcomes) == ["done"] * 5 + ["skipped"] * 5
    assert set(server.puts("_separation.json").values()) == {1}
    assert len(names(system)) == 15


@pytest.mark.long
def test_a_worker_that_is_killed_costs_one_try_and_its_claim_keeps_nobody_waiting(
    store, there, work, tmp_path
):
    killing = Killing(always="3", once="1", mark=str(tmp_path / "mark"))
    outcomes = list(run_locally(work(finisher=killing), longest_first(there), 1))
    states = {outcome.recording.name: outcome.state for outcome in outcomes}
    assert states == {"0": "done", "1": "done", "2": "done", "3": "quarantined", "4": "done"}
    looks = [path for method, path in store[0].requests if method == "GET" and "/.batch/claims/" in path]
    assert (
        len(looks) == 3
    )  # once for each death: the machine's own lock is free, so that nobody is waited for
    assert not [name for name in names(store[1]) if "claims" in name]


@pytest.mark.long
def test_a_run_that_is_killed_is_ended_by_the_same_command(store, there, checkpoint):
    server, system = store
    run = start_command(*command(checkpoint))
    deadline = time.monotonic() + 60
    while not server.puts("_separation.json") and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(run.pid, signal.SIGKILL)
    run.join()
    result = CliRunner().invoke(app, command(checkpoint), catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    rows = list(csv.DictReader(system.cat_file("tracks/out/manifest.csv").decode().splitlines()))
    assert len({row["track"] for row in rows}) == len(rows) == 10
    assert {row["state"] for row in rows} <= {"done", "skipped"}
    assert "done" in {row["state"] for row in rows}
    assert not [name for name in names(system) if "claims" in name]


def test_a_store_that_is_slow_is_asked_again(store, there, work, monkeypatch):
    server, _ = store
    server.fault = lambda number, method, path: number % 3 == 0
    outcome = work().worker()(there[0])
    assert outcome.state == "done"
    server.fault = lambda number, method, path: False
    assert work("second").worker()(there[0]).state == "skipped"


def test_a_store_that_is_gone_stops_the_run_and_counts_no_try(
    store, there, work, checkpoint, tmp_path, monkeypatch
):
    server, _ = store
    monkeypatch.setattr(buckets, "PATIENCE_SECONDS", 0.0)
    worker = work().worker()
    server.fault = lambda number, method, path: method == "PUT" and path.endswith(".wav")
    outcome = worker(there[0])
    assert outcome.state == "stopped"
    assert "does not answer" in outcome.error
    server.fault = lambda number, method, path: method == "GET" and path.startswith("/talks")
    assert worker(there[1]).state == "stopped"
    assert list((tmp_path / "here/tries").iterdir()) == []
    server.fault = lambda number, method, path: False
    assert [worker(recording).state for recording in there[:2]] == ["done"] * 2


def test_a_bucket_that_is_not_there_is_refused_before_the_model_is_loaded(store, there, checkpoint):
    result = CliRunner().invoke(
        app, ["batch", "s3://talks/in", "--out", "s3://nowhere", "--model", str(checkpoint / "missing")]
    )
    assert result.exit_code == 3
    assert "cannot write in s3://nowhere" in result.stderr
