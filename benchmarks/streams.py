"""What live streams cost: CPU time over their length, delay and state, one row for each way of taking them.

Usage: python benchmarks/streams.py [--seconds 8] [--rounds 3]

Float32, one thread, with all that a stream needs around the network; the least of some rounds, because what
else is going on only adds to it. `--steps` gives the CPU time of single steps of the live model instead.
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch

from flasepformer import StreamingSeparator

CASES: list[tuple[str, float | None, int, float, int]] = [
    ("default-live", None, 1, 0.02, 8000),
    ("default-live", None, 1, 0.02, 48000),
    ("default-live", None, 1, 1.0, 8000),
    ("default-live", None, 8, 0.02, 8000),
    ("default-live", None, 32, 0.02, 8000),
    ("default-fast", 0.5, 1, 0.02, 8000),
    ("default-fast", 0.5, 1, 0.02, 48000),
]
"""Model, delay, streams, seconds taken at a time, sample rate."""


def play(streams: list[StreamingSeparator], speech: np.ndarray, n_block: int) -> float:
    """Return the CPU time over the length of all streams together."""
    began = time.process_time()
    for first in range(0, len(speech), n_block):
        StreamingSeparator.feed_together(streams, [speech[first : first + n_block]] * len(streams))
    return time.process_time() - began


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="of the stream in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", action="store_true", help="single steps of the live model")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    if options.steps:
        stream = StreamingSeparator.from_pretrained("default-live", 8000, "cpu")
        blocks = 0.1 * rng.standard_normal((300, 512), np.float32)
        times = [1000 * play([stream], block, 512) for block in blocks][20:]
        print(
            "CPU time of a step of 64 ms:", *(f"p{p} {np.percentile(times, p):.2f} ms" for p in (10, 50, 90))
        )
        return
    for model, delay, n_streams, block, rate in CASES:
        first = StreamingSeparator.from_pretrained(model, rate, "cpu", delay=delay)
        streams = [first, *(first.beside() for _ in range(n_streams - 1))]
        n_samples = round(max(options.seconds / n_streams, 2 * block, 1.0) * rate)
        speech = 0.1 * rng.standard_normal(n_samples, np.float32)
        play(streams, 0.1 * rng.standard_normal(5 * rate, np.float32), rate)  # until the windows are full
        least = min(play(streams, speech, round(block * rate)) for _ in range(options.rounds))
        factor = least / (n_streams * n_samples / rate)
        row = [model, n_streams, f"{1000 * block:g} ms", rate, f"{1000 * first.delay_seconds:.0f} ms"]
        print(*row, f"{factor:.3f}", f"{first.state_bytes / 1000:.0f} kB", sep="\t", flush=True)


if __name__ == "__main__":
    main()
