"""Training in processes of its own."""

import os
import signal
import sys
import time
import types

from tests.processes import CONTEXT


def train_alone(recipe, folder, **options):
    """Train as one of one."""
    import torch

    from flasepformer.training import train

    torch.set_num_threads(1)
    train(recipe, folder, **options)


def train_until_killed(recipe, folder, moment):
    """Train until the fourth checkpoint is half written, or the fourth row of the curve is: then die."""
    from flasepformer.training import run_folder

    n_moments = 0

    def count_down():
        nonlocal n_moments
        n_moments += 1
        if n_moments == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    class Pulled(run_folder.RunFolder):
        def append_to_curve(self, row):
            super().append_to_curve(row)
            if moment == "row":
                count_down()

    def fsync(file):
        count_down()

    loop = sys.modules[run_folder.__package__ + ".loop"]
    loop.RunFolder = Pulled
    if moment == "checkpoint":
        run_folder.os = types.SimpleNamespace(fsync=fsync)
    train_alone(recipe, folder)


def train_as_one_of_several(rank, port, recipe, folder, options, error_file=None):
    """Train with the environment that `torchrun` gives a process, whose store the parent keeps too.

    What is raised is written to a file, if one is named.
    """
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
    os.environ.update({key: str(value) for key, value in {**world, **address}.items()})
    try:
        train_alone(recipe, folder, **options)
    except BaseException as error:
        if error_file is not None:
            error_file.write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        raise


def train_in_two_processes(recipe, folder, seconds=120, **options):
    """Train with gloo; what one of the processes raises is raised here, and no process outlives this call."""
    from torch.distributed import TCPStore
    from torch.multiprocessing.spawn import start_processes

    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    context = start_processes(
        train_as_one_of_several,
        (store.port, recipe, folder, options),
        nprocs=2,
        join=False,
        start_method=CONTEXT.get_start_method(),
    )
    deadline = time.monotonic() + seconds
    try:
        while not context.join(timeout=1, grace_period=10):
            if time.monotonic() > deadline:
                raise AssertionError(f"the processes have not ended after {seconds} s")
    finally:
        for process in context.processes:
            process.kill()
            process.join()
