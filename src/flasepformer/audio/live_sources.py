"""Where a stream comes from, and where its tracks may be heard: raw samples, a recording, sound devices.

The sound devices need the extra `live` (sounddevice, which brings PortAudio).
"""

import os
import queue
import time
from collections.abc import Iterator
from itertools import chain
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from flasepformer.audio.blocks import Stream, regular_blocks
from flasepformer.audio.recording import AudioError
from flasepformer.installing import how_to_install

Samples = NDArray[np.float32]

PcmFormat = Literal["s16", "s32", "f32"]
"""Raw samples, little-endian: integers of 16 or 32 bits, or floats of 32."""

_PCM_TYPES = {"s16": ("<i2", 2.0**15), "s32": ("<i4", 2.0**31), "f32": ("<f4", 1.0)}

QUEUE_SECONDS = 10.0
"""What is kept of a microphone while nobody takes it."""

CATCH_UP_SECONDS = 1.0
"""Most that is taken at once of what has come meanwhile: long blocks cost less, so who is late catches up."""


class Source(Protocol):
    """A stream of blocks."""

    sample_rate: int
    """In Hz."""
    n_lost: int
    """Samples so far that came too fast to be taken; silence stands in their place."""
    problem: str
    """Why the stream ended before its time; empty if it did not."""

    @property
    def behind(self) -> float:
        """Seconds of the stream that wait to be taken, as far as that is known."""

    def blocks(self) -> Iterator[Samples]:
        """Return blocks (channel, time) as they come."""


class PcmSource:
    """Raw samples from a file descriptor, such as standard input: what is there is taken at once.

    Args:
        descriptor: To read from.
        sample_rate: In Hz.
        n_channels: Interleaved.
        form: Of the samples.
    """

    def __init__(
        self,
        descriptor: int,
        sample_rate: int,
        n_channels: int = 1,
        form: PcmFormat = "s16",
    ) -> None:
        self.sample_rate, self.n_lost, self.problem = sample_rate, 0, ""
        self.behind = 0.0  # what waits in a pipe is not known; whoever writes into it waits, too
        self._descriptor, self._n_channels = descriptor, n_channels
        self._type, self._full_scale = _PCM_TYPES[form]
        self._n_bytes = round(CATCH_UP_SECONDS * sample_rate) * n_channels * np.dtype(self._type).itemsize

    def blocks(self) -> Iterator[Samples]:
        frame = self._n_channels * np.dtype(self._type).itemsize
        rest = b""
        while content := os.read(self._descriptor, self._n_bytes):
            content = rest + content
            n_whole = len(content) - len(content) % frame
            rest = content[n_whole:]
            yield self._decoded(content[:n_whole])
        if rest:
            self.problem = f"the stream ended within a sample; {len(rest)} bytes are left over"

    def _decoded(self, content: bytes) -> Samples:
        samples = np.frombuffer(content, self._type).astype(np.float32) / np.float32(self._full_scale)
        return np.ascontiguousarray(samples.reshape(-1, self._n_channels).T)


def _joined(blocks: list[Samples]) -> Samples:
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1)


class ReplaySource:
    """A recording as if somebody were talking now: read while it is played, once.

    Nothing of it is lost when it is taken too slowly; what is due then comes in one block, up to
    `CATCH_UP_SECONDS`, and `behind` says how much a microphone would have had to keep, which keeps
    `QUEUE_SECONDS`.

    Args:
        recording: Its rate need not be known before its first block.
        speed: Times real time.
        block_seconds: Of the recording, in a block.

    Raises:
        AudioError: The recording cannot be read; also in `blocks`.
    """

    def __init__(self, recording: Stream, *, speed: float = 1.0, block_seconds: float = 0.02) -> None:
        self.n_lost, self.behind, self.problem = 0, 0.0, ""
        self._coming = recording.blocks()
        self._head = next(self._coming)
        self.sample_rate = recording.sample_rate
        self._speed = speed
        self._length = max(round(block_seconds * self.sample_rate), 1)

    def blocks(self) -> Iterator[Samples]:
        most = max(round(CATCH_UP_SECONDS * self.sample_rate), self._length)
        began, n_played, n_due = time.monotonic(), 0, 0
        due: list[Samples] = []
        for block in regular_blocks(chain([self._head], self._coming), self._length):
            n_played, n_due = n_played + block.shape[1], n_due + block.shape[1]
            due.append(block)
            wait = began + n_played / self.sample_rate / self._speed - time.monotonic()
            self.behind = max(-wait * self._speed, 0.0)
            if wait > 0 or n_due + self._length > most:
                time.sleep(max(wait, 0))
                yield _joined(due)
                due, n_due = [], 0
        if due:
            yield _joined(due)


class Microphone:
    """A sound device, whose driver delivers blocks whether they are taken or not.

    What cannot be kept until it is taken is lost, and so is what the driver says that it has lost: both are
    counted in `n_lost` as far as they are known, and the former replaced by silence.

    Args:
        device: Name or number; the system's default by default.
        sample_rate: In Hz; the device's own by default.
        n_channels: Of the device.
        block_seconds: Length of a block.
        backend: What stands for `sounddevice`.

    Raises:
        AudioError: There is no such device, or it cannot be opened.
        ModuleNotFoundError: The package `sounddevice` is missing.
    """

    def __init__(
        self,
        device: str | int | None = None,
        sample_rate: int | None = None,
        n_channels: int = 1,
        *,
        block_seconds: float = 0.02,
        backend: Any = None,
    ) -> None:
        self.n_lost, self.problem = 0, ""
        self.n_overruns = 0
        """Times that the driver said that it had lost something; it does not say how much."""
        sound = backend or sound_devices()
        try:
            rate = sample_rate or int(sound.query_devices(device, "input")["default_samplerate"])
            self.sample_rate = int(rate)
            self._block_seconds = block_seconds
            self._queue: queue.Queue[Samples | None] = queue.Queue(max(int(QUEUE_SECONDS / block_seconds), 1))
            self._waiting = 0  # lost samples that silence has yet to stand for
            self._stream = sound.InputStream(
                samplerate=self.sample_rate, blocksize=round(block_seconds * self.sample_rate), device=device,
                channels=n_channels, dtype="float32", callback=self._take, finished_callback=self._finish,
            )  # fmt: skip
        except (sound.PortAudioError, ValueError) as error:
            raise AudioError(f"the microphone cannot be opened: {error}") from error
        self._error: type[Exception] = sound.PortAudioError
        self._stopping = self._ended = False

    @property
    def behind(self) -> float:
        """Seconds of the stream that wait to be taken."""
        return self._queue.qsize() * self._block_seconds

    def _take(self, samples: Samples, n_frames: int, times: Any, status: Any) -> None:
        """Take a block (time, channel) in the driver's thread."""
        self.n_overruns += bool(getattr(status, "input_overflow", False))
        block = samples.T.copy()
        if self._waiting:
            block = np.concatenate([np.zeros((len(block), self._waiting), np.float32), block], axis=1)
        try:
            self._queue.put_nowait(block)
            self._waiting = 0
        except queue.Full:
            self.n_lost += n_frames
            self._waiting += n_frames

    def _finish(self) -> None:
        """Note that no more will come; the driver calls this when the device is unplugged, too."""
        while True:
            try:
                return self._queue.put_nowait(None)
            except queue.Full:
                self.n_lost += self._queue.get_nowait().shape[1]  # type: ignore[union-attr]

    def blocks(self) -> Iterator[Samples]:
        try:
            self._stream.start()
        except self._error as error:
            raise AudioError(f"the microphone cannot be started: {error}") from error
        try:
            while (block := self._next()) is not None:
                yield block
            if not self._stopping:
                self.problem = "the microphone is gone: unplugged, or taken by another program"
        finally:
            self._stopping = True
            self._stream.close()

    def _next(self) -> Samples | None:
        """Return what is there, at least a block; None when no more will come."""
        blocks: list[Samples] = []
        while not self._ended and len(blocks) * self._block_seconds < CATCH_UP_SECONDS:
            try:
                block = self._queue.get_nowait() if blocks else self._queue.get(timeout=1.0)
            except queue.Empty:
                if blocks:
                    break
                self._ended = not self._stream.active
                continue
            if block is None:
                self._ended = True
            else:
                blocks.append(block)
        return _joined(blocks) if blocks else None


class Speaker:
    """A sound device that plays one track.

    Args:
        device: Name or number.
        sample_rate: In Hz.
        backend: What stands for `sounddevice`.

    Raises:
        AudioError: There is no such device, or it cannot be opened.
        ModuleNotFoundError: The package `sounddevice` is missing.
    """

    def __init__(self, device: str | int | None, sample_rate: int, *, backend: Any = None) -> None:
        sound = backend or sound_devices()
        self.n_dropped = 0
        """Samples that the device had no room for, or that came after it was gone."""
        self.problem = ""
        """Why it plays no more; empty while it does."""
        try:
            self._stream = sound.OutputStream(
                samplerate=sample_rate, device=device, channels=1, dtype="float32", latency="high"
            )
            self._stream.start()
        except (sound.PortAudioError, ValueError) as error:
            raise AudioError(f"the device {device} cannot be opened: {error}") from error
        self._name, self._error = device, sound.PortAudioError

    def write(self, samples: Samples) -> None:
        """Play samples (time,) after those before; never wait for the device, nor fail with it."""
        n = 0
        if not self.problem:
            try:
                n = min(len(samples), int(self._stream.write_available))
                if n:
                    self._stream.write(np.clip(samples[:n], -1, 1)[:, None].astype(np.float32))
            except self._error as error:
                n, self.problem = 0, f"the device {self._name} plays no more: {error}"
        self.n_dropped += len(samples) - n

    def close(self) -> None:
        """Give the device back."""
        self._stream.close()


def sound_devices() -> Any:
    """Return the package `sounddevice`.

    Raises:
        ModuleNotFoundError: It is missing, or PortAudio is.
    """
    try:
        import sounddevice
    except (ModuleNotFoundError, OSError) as error:
        raise ModuleNotFoundError(
            f"sound devices need sounddevice and PortAudio ({error}): {how_to_install('live')}; "
            "a recording (--replay) and standard input (-) do without"
        ) from error
    return sounddevice
