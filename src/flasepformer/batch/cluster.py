"""The engine on a cluster: Ray Data, whose actors hold the model, come back when they die, and are moved."""

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from flasepformer.batch.outcomes import Outcome
from flasepformer.batch.recordings import Recording
from flasepformer.batch.work import Work
from flasepformer.errors import FlasepformerError
from flasepformer.inference.memory import USABLE_SHARE, format_size

LOCAL = "local"
"""The address of a cluster of this machine alone, begun and ended with the run."""

_TASKS_PER_WORKER = 16
"""At least, where there are so many recordings: a task that is done again finds its first ones done."""


class ClusterError(FlasepformerError, RuntimeError):
    """There is no cluster at that address."""


class _Actor:
    """Works in a process of the cluster.

    Args:
        payload: A list of the reference to the pickled `Work`, which each machine fetches once.
    """

    def __init__(self, payload: list[Any]) -> None:
        import ray
        import torch

        torch.set_num_threads(1)
        self._worker = pickle.loads(ray.get(payload[0])).worker()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"outcome": pickle.dumps(self._worker(pickle.loads(row["recording"]), wait=row["wait"]))}


def run_on_ray(
    work: Work, recordings: Sequence[Recording], n_workers: int, *, address: str = "auto", n_gpus: float = 0.0
) -> Iterator[Outcome]:
    """Separate recordings in actors of one core each, and yield what became of them as it comes.

    Args:
        work: Its folders have to be reached from every machine. Its memory is that of each worker; by default
            they share half of what the cluster has.
        recordings: In the order of work.
        n_workers: Actors.
        address: Of the cluster: "auto" for the one of this machine, "local" for a new one here.
        n_gpus: Share of a GPU for each actor.

    Raises:
        ClusterError: There is no such cluster, or it has not so much memory.
    """
    import ray

    begun_here = not ray.is_initialized()
    if begun_here:
        place = {"num_cpus": n_workers, "include_dashboard": False} if address == LOCAL else {}
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error", **place)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ClusterError(
                f"no Ray cluster at {address}: {error}; `ray start --head` begins one, "
                "--address local one of this machine alone; for one with a token set RAY_AUTH_MODE=token"
            ) from error
    try:
        work, each = _with_memory(work, n_workers, n_gpus)
        payload = ray.put(pickle.dumps(work))
        elsewhere: list[Recording] = []
        for outcome in _pass(recordings, payload, n_workers, each, wait=False):
            if outcome.state == "elsewhere":
                elsewhere.append(outcome.recording)
            else:
                yield outcome
        if elsewhere:
            yield from _pass(elsewhere, payload, n_workers, each, wait=True)
    finally:
        if begun_here:
            ray.shutdown()


def _with_memory(work: Work, n_workers: int, n_gpus: float) -> tuple[Work, dict[str, Any]]:
    """Return the work with memory for each worker, and what a worker asks of the cluster, that included."""
    import ray

    there = ray.cluster_resources().get("memory", 0)
    n_bytes = work.memory or int(USABLE_SHARE * there / n_workers) or None
    if n_bytes and n_bytes * n_workers > there:
        raise ClusterError(
            f"{n_workers} workers with {format_size(n_bytes)} each need more memory than the "
            f"{format_size(there)} of the cluster; take fewer (--jobs), or less (--memory)"
        )
    return replace(work, memory=n_bytes, n_shares=1), {
        "num_cpus": 1, "num_gpus": n_gpus or None, "memory": n_bytes
    }  # fmt: skip


def _pass(
    recordings: Sequence[Recording], payload: Any, n_workers: int, each: dict[str, Any], *, wait: bool
) -> Iterator[Outcome]:
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    rows = [{"recording": pickle.dumps(recording), "wait": wait} for recording in recordings]
    n_tasks = min(len(rows), max(n_workers * _TASKS_PER_WORKER, len(rows) // _TASKS_PER_WORKER))
    data = ray.data.from_items(rows, override_num_blocks=n_tasks).map(
        _Actor,
        fn_constructor_args=([payload],),
        compute=ray.data.ActorPoolStrategy(size=min(n_workers, len(rows))),
        **each,
    )  # actors come back for ever, as Ray Data has it; `TryBook` sees to it that no recording kills for ever
    for row in data.iter_rows():
        yield pickle.loads(row["outcome"])
