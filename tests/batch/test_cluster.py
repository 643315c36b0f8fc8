"""The same promises on a Ray cluster of this machine."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from tests.batch.killing import Killing

from flasepformer.batch import ClusterError, Recording, Work, longest_first, run_on_ray

ray = pytest.importorskip("ray", reason="ray is missing: tests of clusters need the extra `ray`")
pytest.importorskip("ray.data", reason="ray.data is missing: tests of clusters need the extra `ray`")

pytestmark = [pytest.mark.long, pytest.mark.timeout(280)]


@pytest.fixture(scope="module")
def cluster():
    """Two cores, as Ray counts them."""
    ray.init(
        address="local", num_cpus=2, _memory=4 * 10**9, object_store_memory=100 * 2**20,
        include_dashboard=False, log_to_driver=False, logging_level="error",
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture
def work(separator, tmp_path):
    def make(run="first", memory=500_000_000, **options):
        out = tmp_path / "out"
        return Work(separator, options, str(out), str(out / ".batch"), run, memory=memory)

    return make


def test_what_kills_its_actor_is_given_up_and_all_the_rest_is_done_and_found_by_the_next_run(
    cluster, work, talks, tmp_path
):
    todo = longest_first([Recording(str(path), "", path.stem, 1.0) for path in talks.iterdir()])
    killing = Killing(always="3", once="1", mark=str(tmp_path / "mark"))
    outcomes = list(run_on_ray(work(finisher=killing), todo, 2))
    states = {outcome.recording.name: outcome.state for outcome in outcomes}
    assert states == {"0": "done", "1": "done", "2": "done", "3": "quarantined", "4": "done"}
    assert len(outcomes) == 5
    assert (tmp_path / "mark").exists()
    (tmp_path / "out/2_separation.json").unlink()
    for path in (tmp_path / "out").glob("2_*.wav"):
        path.unlink()
    again = list(run_on_ray(work("second", finisher=killing), todo, 2))
    assert {outcome.recording.name: outcome.state for outcome in again} == {
        "0": "skipped", "1": "skipped", "2": "done", "3": "quarantined", "4": "skipped",
    }  # fmt: skip
    assert ray.is_initialized()  # it was not begun here


def test_workers_with_more_memory_than_the_cluster_has_are_refused(cluster, work, talks):
    todo = [Recording(str(talks / "0.wav"), "", "0")]
    with pytest.raises(ClusterError, match="2 workers with 3 GB each need more memory than the 4 GB"):
        next(run_on_ray(work(memory=3_000_000_000), todo, 2))


@contextmanager
def head():
    """A cluster of its own with two cores; yields the process that holds its tables, and the environment."""
    folder = Path(tempfile.mkdtemp(prefix="head"))  # short, as it will hold sockets
    environment = {
        **os.environ, "RAY_TMPDIR": str(folder), "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
        "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    words = "start --head --block --port 0 --num-cpus 2 --memory 4000000000 --object-store-memory 100000000"
    ray_start = [sys.executable, "-m", "ray.scripts.scripts", *words.split(), "--include-dashboard", "false"]
    process = subprocess.Popen(
        ray_start, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: (folder / "ray/ray_current_cluster").exists(), process)
        (tables,) = (p for p in psutil.Process(process.pid).children(True) if p.name() == "gcs_server")
        yield tables, environment
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def until(condition, process):
    deadline = time.monotonic() + 100
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_when_the_head_is_killed_nothing_is_lost_and_the_next_cluster_does_what_is_missing(
    checkpoint, talks, tmp_path
):
    for index in range(5, 150):
        shutil.copy(talks / f"{index % 5}.wav", talks / f"{index}.wav")
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "flasepformer", "batch", str(talks), "--out", str(out),
        "--model", str(checkpoint),
        "--engine", "ray", "--jobs", "2", "--memory", "300M",
    ]  # fmt: skip

    def reports():
        return list(out.glob("*_separation.json"))

    with head() as (tables, environment):
        run = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: len(reports()) > 5, run)
        tables.send_signal(signal.SIGKILL)
        assert run.wait(100) != 0
    n_done = len(reports())
    assert n_done < 150
    with head() as (_, environment):
        again = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=200
        )
    assert again.returncode == 0, again.stderr
    assert f"{150 - n_done} done, {n_done} skipped, 0 failed" in again.stderr
    assert len(reports()) == 150
    assert list((out / ".batch/tries").iterdir()) == []
