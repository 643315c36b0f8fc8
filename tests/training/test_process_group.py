import os
import signal
import time

import pytest
import torch
from tests.processes import start
from tests.training.conftest import changed, curve
from tests.training.processes import train_as_one_of_several, train_in_two_processes
from torch.distributed import TCPStore

from flasepformer.training import loop as loop_module

SECONDS = 30
"""In which both processes have to end by themselves."""


@pytest.fixture
def long_recipe(small_recipe):
    return changed(small_recipe, batch_size=2, n_steps=100_000)


@pytest.fixture
def two(long_recipe, tmp_path):
    """Two processes in the middle of a long training."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    run = tmp_path / "run"
    processes = [
        start(train_as_one_of_several, rank, store.port, long_recipe, run, {}, tmp_path / f"error-{rank}")
        for rank in (0, 1)
    ]
    deadline = time.monotonic() + 60
    while not (run / "curve.csv").exists() or len(curve(run)) < 3:
        assert time.monotonic() < deadline, "the training does not begin"
        time.sleep(0.05)
    yield processes
    for process in processes:
        process.kill()
        process.join()


def wait_for_both(processes):
    deadline = time.monotonic() + SECONDS
    for process in processes:
        process.join(timeout=max(0.0, deadline - time.monotonic()))
    assert [process.exitcode is None for process in processes] == [False, False], "a process does not end"


@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_process_is_killed_the_other_ends_and_says_why(two, victim, tmp_path):
    two[victim].kill()
    wait_for_both(two)
    assert "another process of the run is gone" in (tmp_path / f"error-{1 - victim}").read_text()


@pytest.mark.slow
def test_ctrl_c_ends_both_processes_with_a_whole_checkpoint(two, tmp_path):
    for process in two:
        os.kill(process.pid, signal.SIGINT)
    wait_for_both(two)
    for rank in (0, 1):
        assert (tmp_path / f"error-{rank}").read_text() == "KeyboardInterrupt: "
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["progress"]["n_heard"] == 4 * state["progress"]["step"] > 0


def fail_in_the_second_process(rank, *arguments):
    """Train; in the second process the third step raises."""
    steps = loop_module._Run._step

    def step(self, *batch):
        if rank == 1 and self.progress.step == 2:
            raise ZeroDivisionError("of the test")
        return steps(self, *batch)

    loop_module._Run._step = step
    train_as_one_of_several(rank, *arguments)


@pytest.mark.long
def test_an_error_in_one_process_ends_both(long_recipe, tmp_path):
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    processes = [
        start(
            fail_in_the_second_process,
            rank,
            store.port,
            long_recipe,
            tmp_path / "run",
            {},
            tmp_path / f"error-{rank}",
        )
        for rank in (0, 1)
    ]
    wait_for_both(processes)
    assert (tmp_path / "error-1").read_text() == "ZeroDivisionError: of the test"
    assert "another process of the run is gone" in (tmp_path / "error-0").read_text()


@pytest.mark.long  # a minute: the end of a training is where a process once in 13 runs hung for ever
def test_a_hundred_trainings_in_two_processes_end(small_recipe, tmp_path):
    short = changed(small_recipe, batch_size=2, n_steps=3, warmup_steps=1, decay_steps=1)
    for k in range(100):
        train_in_two_processes(short, tmp_path / str(k))
