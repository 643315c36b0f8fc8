import gc
import os
import signal

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # there is a worker for each core: more threads only get in the way
    os.environ["OMP_NUM_THREADS"] = "1"  # before PyTorch is imported, and for the processes that tests start


def pytest_collection_finish():
    pass_over_what_there_is()


def pytest_runtest_logfinish():
    pass_over_what_there_is()  # a test imports too


def pass_over_what_there_is():
    """Clear the garbage, and let the collector never look at the rest again: every training ends with a
    collection, which takes longer than the training where all that was ever imported is walked over."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """Let Ctrl-C reach the tests and what they start, although a test run in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
