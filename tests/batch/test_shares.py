"""Memory is shared such that all who work have enough, and nobody waits for ever."""

import pytest

from flasepformer.batch import Recording, Work, longest_first
from flasepformer.batch.shares import Queue


def queue_of(*needs, n_shares):
    """A queue of recordings as long as what they need, in shares."""
    recordings = longest_first(
        [Recording(f"{index}", "", f"{index}", need) for index, need in enumerate(needs)]
    )
    return Queue(recordings, n_shares, lambda recording: round(recording.seconds))


def test_a_recording_that_needs_all_the_memory_is_worked_on_alone():
    queue = queue_of(1, 1, 9, 1, n_shares=4)
    longest = queue.take()
    assert (longest.recording.name, longest.n_shares) == ("2", 4)
    assert queue.take() is None
    queue.end(longest)
    assert [queue.take().n_shares for _ in range(3)] == [1, 1, 1]
    assert queue.take() is None
    assert len(queue) == 0


def test_short_ones_go_on_in_the_memory_that_is_left_and_never_keep_a_long_one_waiting():
    queue = queue_of(3, 3, 1, 1, 1, n_shares=4)
    first = queue.take()
    guest = queue.take()
    assert (first.recording.name, guest.recording.name) == ("0", "4")  # 3 + 1 shares
    assert queue.take() is None
    queue.end(guest)
    other = queue.take()
    assert other.recording.name == "3"
    queue.end(first)
    assert queue.take().recording.name == "1"  # in the very shares that the first gives back


def test_no_more_shares_are_out_than_there_are_whatever_ends_when():
    queue = queue_of(5, 4, 4, 3, 3, 3, 2, 2, 1, 1, 1, 1, n_shares=5)
    out, done = [], []
    while queue or out:
        while task := queue.take():
            out.append(task)
        assert 0 < sum(task.n_shares for task in out) <= 5
        task = out.pop(len(done) % len(out))
        queue.end(task)
        done.append(task.recording.name)
    assert sorted(done, key=int) == [str(index) for index in range(12)]


def test_what_is_put_back_comes_after_the_others_with_all_the_memory():
    queue = queue_of(1, 1, n_shares=2)
    first = queue.take()
    queue.put_back(first, alone=True)
    assert queue.take().recording.name == "1"
    assert queue.take() is None  # the other is to be alone
    assert len(queue) == 1


@pytest.fixture
def work(separator, tmp_path):
    def make(**changes):
        known = {
            "options": {},
            "out": str(tmp_path / "out"),
            "state": str(tmp_path / "out/.batch"),
            "run": "first",
        }
        return Work(separator, **{**known, **changes})

    return make


def test_a_long_recording_takes_the_shares_that_its_need_says_and_a_short_one_takes_one(work):
    shared = work(memory=700_000_000, n_shares=7)
    need = shared.separator.within(700_000_000).need_bytes(600.0)
    assert 300_000_000 < need < 500_000_000
    assert shared.shares_of(Recording("", "", "", 600.0)) == -(-need // 100_000_000)
    assert shared.shares_of(Recording("", "", "", 0.1)) == 1
    assert shared.shares_of(Recording("", "", "", 1e7)) == 7


def test_what_needs_more_than_its_shares_is_asked_for_again_and_given_up_only_alone(work, talks, tmp_path):
    recording = Recording(str(talks / "4.wav"), "", "4")
    crowded = work(memory=3_000_000, n_shares=3)
    outcome = crowded.worker()(recording, n_shares=1)
    assert outcome.state == "cramped"
    assert list((tmp_path / "out/.batch/tries").iterdir()) == []  # that was no try
    outcome = crowded.worker()(recording)
    assert (outcome.state, outcome.lacks_memory) == ("quarantined", True)
    assert work(memory=100_000_000, n_shares=3).worker()(recording, n_shares=3).state == "quarantined"
    again = work(memory=100_000_000, n_shares=3, again=True, run="other")
    assert again.worker()(recording, n_shares=3).state == "done"
