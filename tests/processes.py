"""Processes of their own that begin in a moment: forked from one that has imported everything."""

import gc
import os
import signal
import sys
from contextlib import suppress
from multiprocessing import get_context

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["accelerate", "torch.utils.tensorboard", "flasepformer.cli", "flasepformer.training",
     "flasepformer.inference", "flasepformer.data",
     "torch._dynamo"]  # which every optimizer imports
)  # fmt: skip


def start(function, *arguments):
    """Call a function, which can be pickled, in a process of its own with one thread."""
    process = CONTEXT.Process(target=_call_with_one_thread, args=(function, *arguments))
    process.start()
    return process


def _call_with_one_thread(function, *arguments):
    import torch

    torch.set_num_threads(1)
    gc.freeze()  # what was imported before the fork is never garbage
    function(*arguments)


def interrupt(process):
    """Send Ctrl-C until it is heard: Python would let one wait that comes just before it reads a pipe."""
    for _ in range(30):
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.kill(process.pid, signal.SIGINT)
        process.join(timeout=2)
        if process.exitcode is not None:
            return
    raise AssertionError("the process does not end")


def start_command(*words, stdout=os.devnull, stderr=os.devnull):
    """Start `flasepformer` with these words; its streams go to files or devices, which exist."""
    return start(_run_command, [os.fspath(word) for word in words], os.fspath(stdout), os.fspath(stderr))


def _run_command(words, stdout, stderr):
    from flasepformer.cli import main

    for descriptor, path in ((1, stdout), (2, stderr)):
        opened = os.open(path, os.O_WRONLY)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.argv = ["flasepformer", *words]
    main()
