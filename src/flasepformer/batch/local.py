"""The engine on one machine: worker processes, each of which costs its own recording if it dies."""

import multiprocessing
import pickle
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any

from flasepformer.batch.outcomes import Outcome
from flasepformer.batch.recordings import Recording
from flasepformer.batch.shares import Queue, Task
from flasepformer.batch.work import Work
from flasepformer.inference.workers import end_with_parent

_CONTEXT = multiprocessing.get_context("spawn")  # a forked process would share PyTorch's threads and locks


class _Process:
    """A process that works on one recording at a time.

    Args:
        payload: What it needs. It is sent when the process asks for it: multiprocessing itself would wait for
            ever where a process that is being started dies over a long argument.
    """

    def __init__(self, payload: bytes) -> None:
        self.connection, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()  # so that its end shows here
        self.task: Task | None = None
        self.ready = False
        self._payload = payload

    def begin(self, task: Task) -> None:
        self.task = task
        self._send((task.recording, task.waits, task.n_shares))

    def receive(self) -> Any:
        """Return what it says; None if it has died."""
        try:
            said = self.connection.recv()
        except (EOFError, ConnectionResetError):
            return None
        if said == "begun":
            self._send(self._payload)
        self.ready |= said == "ready"
        return said

    def end(self) -> None:
        self.process.kill()  # whatever it does is not lost: what it has begun has no final name yet
        self.process.join()
        self.connection.close()

    def _send(self, content: Any) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it has died; `receive` will find it so
            self.connection.send(content)


def run_locally(work: Work, recordings: Sequence[Recording], n_processes: int) -> Iterator[Outcome]:
    """Separate recordings in processes of one thread each, and yield what became of them as it comes.

    A process that dies, by the kernel's hand for want of memory or by anybody's, is replaced; its recording
    is tried once more, alone. Those on which another run works are asked for again at the end, and waited
    for. All that work at a time share the memory of the work: see `Queue`.

    Raises:
        RuntimeError: The processes cannot start.
    """
    work = replace(work, n_shares=n_processes)
    payload = pickle.dumps(work)  # by value: the tensors of a model would else use a file handle each
    queue = Queue(recordings, work.n_shares, work.shares_of)
    processes: list[_Process] = []
    n_stillborn = 0
    try:
        while queue or any(process.task for process in processes):
            n_wanted = min(n_processes, len(queue) + sum(process.task is not None for process in processes))
            while len(processes) < n_wanted:
                processes.append(_Process(payload))
            for process in processes:
                if process.ready and process.task is None and (task := queue.take()):
                    process.begin(task)
            for connection in wait([process.connection for process in processes]):
                process = next(process for process in processes if process.connection is connection)
                said = process.receive()
                if said is None:
                    processes.remove(process)
                    process.end()
                    if process.task is not None:  # it begins by counting the try that killed its process
                        queue.put_back(process.task, alone=True)
                    elif not process.ready:
                        n_stillborn += 1
                        if n_stillborn > n_processes:
                            raise RuntimeError(
                                "the worker processes cannot start, perhaps for want of memory; a script "
                                'must guard its code with `if __name__ == "__main__":`'
                            )
                elif isinstance(said, Outcome):
                    assert process.task is not None, "only a recording has an outcome"
                    task, process.task = process.task, None
                    if said.state == "elsewhere" and not task.waits:
                        queue.put_back(task, waits=True)
                    elif said.state == "cramped":
                        queue.put_back(task, alone=True)
                    else:
                        queue.end(task)
                        yield said
    finally:
        for process in processes:
            process.end()


def _serve(connection: Connection) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent sees to it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    connection.send("begun")
    worker = pickle.loads(connection.recv()).worker()
    connection.send("ready")
    while True:
        try:
            recording, waits, n_shares = connection.recv()
        except EOFError:
            return
        connection.send(worker(recording, wait=waits, n_shares=n_shares))
