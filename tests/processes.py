"""Processes of their own that begin in a moment: forked from one that has imported everything."""

import ctypes
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


def start_command(
    *words, stdin=None, stdout=os.devnull, stderr=os.devnull, environment=None, powerless=False
):
    """Start `flasepformer` with these words; its streams go to files or devices, which exist.

    The process has the environment that there was when the first one was started, and these variables. One
    without power may read no more than the permissions say, also as root.
    """
    streams = {0: stdin and os.fspath(stdin), 1: os.fspath(stdout), 2: os.fspath(stderr)}
    return start(
        _run_command, [os.fspath(word) for word in words], streams, dict(environment or {}), powerless
    )


def _run_command(words, streams, environment, powerless):
    from flasepformer.cli import main

    if powerless and os.geteuid() == 0:
        header, no_capabilities = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None).capset(header, no_capabilities) == 0

    for descriptor, path in streams.items():
        if path is not None:
            opened = os.open(path, os.O_WRONLY if descriptor else os.O_RDONLY)
            os.dup2(opened, descriptor)
            os.close(opened)
    if streams[0] is not None:
        sys.stdin = os.fdopen(0, closefd=False)
    os.environ.update(environment)
    sys.argv = ["flasepformer", *words]
    main()
