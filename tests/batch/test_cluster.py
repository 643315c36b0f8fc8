"""The same promises on a Ray cluster of this machine."""

import pytest
from tests.batch.killing import Killing

from flasepformer.batch import ClusterError, Recording, Work, longest_first, run_on_ray

ray = pytest.importorskip("ray", reason="ray is missing: tests of clusters need the extra `ray`")
pytest.importorskip("ray.data", reason="ray.data is missing: tests of clusters need the extra `ray`")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]


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
