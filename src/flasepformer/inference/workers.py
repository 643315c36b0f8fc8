"""Spread work over processes of one thread each; one that dies costs its own item and nothing else."""

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch

from flasepformer.errors import FlasepformerError

Item = TypeVar("Item")
Result = TypeVar("Result")

_CONTEXT = multiprocessing.get_context("spawn")  # a forked process would share PyTorch's threads and locks
_function: Callable[[Any], Any]  # what a worker process does, set once in each


class WorkerDied(FlasepformerError, RuntimeError):
    """The process that worked on an item was killed, most often for want of memory."""


def map_in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], n_processes: int
) -> Iterator[Result | WorkerDied]:
    """Apply a function to items, and yield the results in the order of the items.

    Args:
        function: Can be pickled, e.g. a `functools.partial`; it is sent once to each process. What it raises
            is raised here.
        items: Can be pickled.
        n_processes: How many work at the same time.

    Yields:
        The result of each item, or `WorkerDied`.

    Raises:
        RuntimeError: The processes cannot start.
    """
    payload = pickle.dumps(function)  # by value: the tensors of a model would else use a file handle each
    start, n_suspects = 0, 0
    while start < len(items):
        # after a death, one process works on those that can have been under way, and shows which is guilty
        batch, n = (items[start : start + n_suspects], 1) if n_suspects else (items[start:], n_processes)
        n_done = 0
        try:
            for result in _map_until_a_death(payload, batch, n):
                yield result
                n_done += 1
        except WorkerDied as death:
            if n > 1:
                start, n_suspects = start + n_done, n_processes
                continue
            yield death
            n_done += 1
        start += n_done
        n_suspects = max(0, n_suspects - n_done)


def _map_until_a_death(payload: bytes, items: Sequence[Any], n_processes: int) -> Iterator[Any]:
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(min(n_processes, len(items)), _CONTEXT, _start, (payload,)) as pool:
        try:
            pool.submit(_nothing).result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "the worker processes cannot start; a script that uses several must guard its code with "
                '`if __name__ == "__main__":`'
            ) from error
        try:
            for future in [pool.submit(_work, item) for item in items]:
                yield future.result()
        except BrokenProcessPool as error:
            raise WorkerDied("the process that worked on it died, perhaps for want of memory") from error
        except BaseException:  # an interrupt, too: what is under way is not waited for
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise


def _start(payload: bytes) -> None:
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent sees to it
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _function = pickle.loads(payload)


def end_with_parent() -> None:
    """End this process when that has ended which started it."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in worker processes only"
    parent.join()
    os._exit(1)


def _nothing() -> None:
    pass


def _work(item: Any) -> Any:
    return _function(item)
