"""Who begins next, such that all have memory enough: each worker has a share, a long recording several."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from flasepformer.batch.recordings import Recording


@dataclass
class Task:
    """A recording that is to be separated, with so many shares of the memory."""

    recording: Recording
    n_shares: int = 0
    """0 until it is looked at for the first time."""
    waits: bool = False
    """For another run that works on it."""
    is_guest: bool = False
    """Whether it has begun before its turn, in memory that a longer one waited for."""


class Queue:
    """Tasks in the order of work, whose shares never are more than there are while they are out.

    Where the first one needs more than is left, it waits, and the last ones, which are short, go on in what
    it leaves: so it begins as soon as those that began before it have ended, and no share is idle meanwhile.

    Args:
        recordings: The longest first.
        n_shares: There are so many.
        shares_of: How many a recording needs; more than there are means all.
    """

    def __init__(
        self, recordings: Iterable[Recording], n_shares: int, shares_of: Callable[[Recording], int]
    ) -> None:
        self._todo = deque(Task(recording) for recording in recordings)
        self._later: deque[Task] = deque()
        self._n_shares, self._shares_of = n_shares, shares_of
        self._n_taken = self._n_guests = 0
        self._rest_is_short = False

    def __len__(self) -> int:
        """Of those that have not been taken."""
        return len(self._todo) + len(self._later)

    def take(self) -> Task | None:
        """Return a task that may begin now; None if all have to wait for one that is out, or none is left."""
        if not self._todo:
            self._todo, self._later = self._later, deque()
        if not self._todo:
            return None
        n_left, n_wanted = self._n_shares - self._n_taken, self._measured(self._todo[0])
        self._rest_is_short |= n_wanted == 1  # what follows is shorter
        if n_wanted <= n_left:
            return self._out(self._todo.popleft())
        last = self._measured(self._todo[-1])
        if last <= n_left and self._n_guests + last <= self._n_shares - n_wanted:
            self._todo[-1].is_guest = True
            return self._out(self._todo.pop())
        return None

    def end(self, task: Task) -> None:
        """Give the shares of a task back."""
        self._n_taken -= task.n_shares
        self._n_guests -= task.n_shares if task.is_guest else 0

    def put_back(self, task: Task, *, waits: bool = False, alone: bool = False) -> None:
        """Give a task back that is to be done when the others are.

        Args:
            task: It.
            waits: Whether it then waits for another run.
            alone: Whether it then has all the memory.
        """
        self.end(task)
        n_shares = self._n_shares if alone else task.n_shares
        self._later.append(Task(task.recording, n_shares, waits or task.waits))

    def _out(self, task: Task) -> Task:
        self._n_taken += task.n_shares
        self._n_guests += task.n_shares if task.is_guest else 0
        return task

    def _measured(self, task: Task) -> int:
        if not task.n_shares:
            n_wanted = 1 if self._rest_is_short else self._shares_of(task.recording)
            task.n_shares = max(1, min(self._n_shares, n_wanted))
        return task.n_shares
