import threading

import pytest
import torch

from flasepformer.running import Threads


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_items_are_computed_two_at_a_time_and_come_in_order():
    meet = threading.Barrier(2, timeout=20)  # raises if only one thread ever comes

    def work(item):
        meet.wait()
        return 10 * item, torch.get_num_threads(), threading.get_ident()

    with Threads(torch.device("cpu")) as threads:
        results = list(threads.map(work, range(6)))
    assert [value for value, _, _ in results] == [0, 10, 20, 30, 40, 50]
    assert {n for _, n, _ in results} == {1}  # each of them on one core
    assert len({thread for _, _, thread in results}) == 2


def test_the_next_two_wait_until_those_before_are_taken():
    begun = []
    with Threads(torch.device("cpu")) as threads:
        results = threads.map(lambda item: begun.append(item) or item, range(5))
        assert next(results) == 0
        assert sorted(begun) == [0, 1]
        assert next(results) == 1
        assert sorted(begun) == [0, 1]
        assert next(results) == 2
        assert sorted(begun) == [0, 1, 2, 3]


def test_others_keep_their_number_of_threads():
    with Threads(torch.device("cpu")) as threads:
        list(threads.map(lambda item: item, range(3)))
        assert torch.get_num_threads() == 2
    found = []
    other = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert (found, torch.get_num_threads()) == ([2], 2)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_no_thread_records_gradients(mode):
    weight = torch.ones(3, requires_grad=True)
    with mode(), Threads(torch.device("cpu")) as threads:
        (result,) = threads.map(lambda item: weight * item, [2.0])
    assert not result.requires_grad
    assert result.is_inference() == (mode is torch.inference_mode)


def test_an_error_of_an_item_is_the_caller_s():
    with Threads(torch.device("cpu")) as threads, pytest.raises(ZeroDivisionError):
        list(threads.map(lambda item: 1 / item, [2, 1, 0]))


def test_a_single_thread_needs_no_others():
    torch.set_num_threads(1)
    with Threads(torch.device("cpu")) as threads:
        assert set(threads.map(lambda item: threading.get_ident(), range(3))) == {threading.get_ident()}
