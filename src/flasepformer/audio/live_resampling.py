"""Change the sample rate of a stream while it comes, with a short delay that is known."""

from math import ceil, gcd

import numpy as np
from numpy.typing import NDArray

ZERO_CROSSINGS = 40
"""Samples of the lower rate that the filter looks ahead, and as many back: at 8 kHz the delay is 5 ms."""

KAISER_BETA = 8.0
"""Window of the filter: nothing above half the lower rate passes louder than -80 dB."""

CUTOFF = 0.935
"""Middle of the filter's slope, as a share of half the lower rate; it passes all up to 0.87 of that."""

_OUTPUTS_AT_ONCE = 1 << 14


class LiveResampler:
    """Resample channels that come in pieces of any length, each output at once when its inputs are there.

    `resample` has a steeper filter, but no bound on its delay that anybody states, and no state to save. The
    result does not depend on how the stream is cut; output n is of the time n / `to_rate`.

    Args:
        from_rate: Sample rate of what comes, in Hz.
        to_rate: Sample rate wanted, in Hz.
        n_channels: Of the stream.
    """

    def __init__(self, from_rate: int, to_rate: int, n_channels: int = 1) -> None:
        common = gcd(from_rate, to_rate)
        self.up, self.down = to_rate // common, from_rate // common
        self.from_rate, self.to_rate = from_rate, to_rate
        ratio = min(1.0, to_rate / from_rate)
        self.half = 0 if from_rate == to_rate else ceil(ZERO_CROSSINGS / ratio)
        """Input samples on either side of an output; the delay."""
        self.n_in = 0
        self.n_out = 0
        self._buffer = np.zeros((n_channels, max(self.half - 1, 0)), np.float32)
        self._first = -max(self.half - 1, 0)  # of the input, in the buffer
        self._kernels = self._design(CUTOFF * ratio) if self.half else None

    @property
    def delay_seconds(self) -> float:
        """How long an output waits for inputs after its own time."""
        return self.half / self.from_rate

    def _design(self, cutoff: float) -> NDArray[np.float32]:
        """Return a kernel for every position between two input samples, (up, 2 half)."""
        offsets = np.arange(1 - self.half, self.half + 1)
        times = offsets[None] - np.arange(self.up)[:, None] / self.up
        window = np.i0(KAISER_BETA * np.sqrt(np.clip(1 - (times / self.half) ** 2, 0, 1)))
        kernels = np.sinc(cutoff * times) * window
        return (kernels / kernels.sum(1, keepdims=True)).astype(np.float32)

    def feed(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take the next samples (channel, any number); return those that are ready (channel, some)."""
        self.n_in += samples.shape[-1]
        if self._kernels is None:
            self.n_out = self.n_in
            return samples
        self._buffer = np.concatenate([self._buffer, samples], axis=1)
        last = self._first + self._buffer.shape[1] - 1 - self.half  # input that the last output may follow
        n_ready = max(((last + 1) * self.up - 1) // self.down + 1 - self.n_out, 0) if last >= 0 else 0
        ready = np.empty((len(samples), n_ready), np.float32)
        for start in range(0, n_ready, _OUTPUTS_AT_ONCE):
            stop = min(start + _OUTPUTS_AT_ONCE, n_ready)
            positions = (self.n_out + np.arange(start, stop)) * self.down
            at, phases = positions // self.up, positions % self.up
            begins = at - self.half + 1 - self._first
            windows = np.lib.stride_tricks.sliding_window_view(self._buffer, 2 * self.half, axis=1)
            ready[:, start:stop] = np.einsum("cnk,nk->cn", windows[:, begins], self._kernels[phases])
        self.n_out += n_ready
        needed = self.n_out * self.down // self.up - self.half + 1  # first input of the next output
        n_done = min(max(needed - self._first, 0), self._buffer.shape[1])
        self._buffer, self._first = self._buffer[:, n_done:].copy(), self._first + n_done
        return ready

    def flush(self) -> NDArray[np.float32]:
        """Return the rest, so that there are `round(inputs * to_rate / from_rate)` in all."""
        n_in, n_out = self.n_in, self.n_out
        n_left = round(n_in * self.up / self.down) - n_out
        rest = self.feed(np.zeros((len(self._buffer), 2 * self.half + 1 if self.half else 0), np.float32))
        self.n_in, self.n_out = n_in, n_out + n_left
        return rest[:, :n_left]

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Return all that has to be known to go on."""
        return {"counts": np.array([self.n_in, self.n_out, self._first]), "buffer": self._buffer.copy()}

    def load(self, state: dict[str, NDArray[np.generic]]) -> None:
        """Go on from the state of another one with the same rates."""
        self.n_in, self.n_out, self._first = (int(count) for count in state["counts"])
        self._buffer = np.asarray(state["buffer"], np.float32)
