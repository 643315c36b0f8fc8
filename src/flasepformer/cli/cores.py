"""How many cores there are to work on."""

import os


def n_cores() -> int:
    """Return the cores that this process may use, of which a container or `taskset` may leave it few."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1
