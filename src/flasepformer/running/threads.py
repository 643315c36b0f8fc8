"""Several pieces of work at a time, each on one core."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from threading import Barrier
from types import TracebackType
from typing import Self, TypeVar

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Threads:
    """A context in which a function is applied to several items at a time, without gradients.

    PyTorch shares every single operation out over the cores. Operations that take a tenth of a millisecond
    lose a third of the time with that; here every core has an item of its own instead.

    Args:
        device: Where the work is done. On a CPU there are as many threads as PyTorch uses, elsewhere one.
    """

    def __init__(self, device: torch.device) -> None:
        self.n_threads = torch.get_num_threads() if device.type == "cpu" else 1
        """Items at a time."""
        self._pool: ThreadPoolExecutor | None = None
        self._is_inference = False
        self._cast = False, torch.bfloat16

    def __enter__(self) -> Self:
        self._is_inference = torch.is_inference_mode_enabled()
        self._cast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        if self.n_threads > 1:
            ready = Barrier(self.n_threads + 1)

            def prepare() -> None:
                torch.get_num_threads()  # sets it, the first time in a thread
                torch.set_num_threads(1)
                ready.wait()

            self._pool = ThreadPoolExecutor(self.n_threads)
            for _ in range(self.n_threads):
                self._pool.submit(prepare)
            ready.wait()
            torch.set_num_threads(self.n_threads)  # of threads that others start later
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def map(self, function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
        """Yield the function of every item, in their order.

        As many items as there are threads are computed before the first of them is given away, and the next
        ones not before the last of them is taken.
        """
        items = iter(items)
        while group := list(islice(items, self.n_threads)):
            if self._pool is None:
                yield from [function(item) for item in group]
            else:
                yield from list(self._pool.map(self._without_gradients(function), group))

    def _without_gradients(self, function: Callable[[_Item], _Result]) -> Callable[[_Item], _Result]:
        def apply(item: _Item) -> _Result:  # every thread has modes of its own
            enabled, dtype = self._cast
            low = torch.autocast("cpu", dtype, enabled=enabled)
            with torch.inference_mode(self._is_inference), torch.no_grad(), low:
                return function(item)

        return apply
