"""Training in processes of its own."""

import os
import signal
import socket
import sys
import types
from concurrent.futures import ProcessPoolExecutor

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


def train_as_one_of_several(rank, n_processes, port, recipe, folder, options):
    """Train with the environment that `torchrun` gives a process."""
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n_processes, "LOCAL_WORLD_SIZE": n_processes}
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in {**world, **address}.items()})
    train_alone(recipe, folder, **options)


def train_in_two_processes(recipe, folder, **options):
    """Train with gloo; what one of the processes raises is raised here."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with ProcessPoolExecutor(2, mp_context=CONTEXT) as pool:
        runs = [
            pool.submit(train_as_one_of_several, rank, 2, port, recipe, folder, options) for rank in (0, 1)
        ]
        for run in runs:
            run.result(timeout=300)
