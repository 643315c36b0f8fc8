"""What surrounds a voice on its way into a recording: rooms, noise, the colour and the band of a microphone.

Every filter here is linear and applied to a whole track, so a mixture stays the sum of its parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flasepformer.audio import AUDIO_EXTENSIONS, read_audio, resample
from flasepformer.data.manifest import Utterance
from flasepformer.data.speech_store import SpeechStore

_PADDING = 2048  # samples behind a track, into which a filter rings instead of onto its start
_BLOCK = 2**18  # samples convolved at a time
_ROLL_OFF = 0.08  # of a low-pass: width of its slope, against its limit


def rms(waveform: NDArray[np.float32]) -> float:
    """Return the root mean square of a waveform."""
    return float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))


@dataclass(frozen=True)
class RoomResponse:
    """The way from a talker to the microphone of a room."""

    samples: NDArray[np.float32]
    """(time,); the direct sound neither amplifies nor attenuates."""
    direct: int
    """Sample at which it arrives."""

    @classmethod
    def aligned(cls, samples: NDArray[np.floating]) -> "RoomResponse":
        """Take the highest peak of a response (time,) as the direct sound."""
        direct = int(np.abs(samples).argmax())
        if samples[direct] == 0:
            raise ValueError("a room response must not be silent")
        return cls((samples / samples[direct]).astype(np.float32), direct)

    def early(self, n_samples: int) -> "RoomResponse":
        """Return the response up to so many samples after the direct sound."""
        return RoomResponse(self.samples[: self.direct + n_samples + 1], self.direct)

    def apply(self, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a waveform (time,) as heard in the room, of the same length, the direct sound in place."""
        return convolve(waveform, self.samples)[self.direct : self.direct + len(waveform)]


def convolve(waveform: NDArray[np.float32], response: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the full convolution of (time,) with a response, block after block."""
    result = np.zeros(len(waveform) + len(response) - 1, np.float32)
    for start in range(0, len(waveform), _BLOCK):
        block = waveform[start : start + _BLOCK]
        n_samples = len(block) + len(response) - 1
        n_fft = 1 << (n_samples - 1).bit_length()
        spectrum = np.fft.rfft(block, n_fft) * np.fft.rfft(response, n_fft)
        result[start : start + n_samples] += np.fft.irfft(spectrum, n_fft)[:n_samples].astype(np.float32)
    return result


def load_rooms(folder: str | Path, sample_rate: int) -> list[list[RoomResponse]]:
    """Read the responses of every room: a file in the folder is a room, and so is a folder of files.

    Of a recording with several channels the first counts.

    Raises:
        ValueError: There is none, or one cannot be read or is silent.
    """
    rooms = []
    for entry in sorted(Path(folder).glob("*")):
        room = []
        for path in recordings_of(entry):
            recording = read_audio(path)
            response = resample(recording.samples[0], recording.sample_rate, sample_rate)
            try:
                room.append(RoomResponse.aligned(response))
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
        if room:
            rooms.append(room)
    if not rooms:
        raise ValueError(f"no room responses in {folder}")
    return rooms


def recordings_of(place: Path) -> list[Path]:
    """Return the recordings under a folder, or the file itself when it is one, in a fixed order."""
    paths = place.rglob("*") if place.is_dir() else [place]
    return sorted(path for path in paths if path.suffix.lower() in AUDIO_EXTENSIONS)


@dataclass(frozen=True)
class Noise:
    """Recordings of noise, decoded and kept in memory; all at the same level."""

    store: SpeechStore

    @classmethod
    def load(
        cls, folders: Sequence[str | Path], sample_rate: int, cache: str | Path | None = None
    ) -> "Noise":
        """Decode every recording under some folders; `cache` as in `SpeechStore.load`.

        Raises:
            ValueError: One holds none, or more than 1 % of them are corrupt.
        """
        paths = []
        for folder in folders:
            found = recordings_of(Path(folder))
            if not found:
                raise ValueError(f"no recordings of noise in {folder}")
            paths += found
        recordings = [Utterance(path, "", 0.0) for path in paths]
        return cls(SpeechStore.load(recordings, sample_rate, cache=cache))

    def draw(self, rng: np.random.Generator, n_samples: int) -> NDArray[np.float32]:
        """Return a stretch (time,) from any place, going on in other recordings where one ends."""
        place = int(rng.integers(len(self.store.samples)))
        index = int(np.searchsorted(self.store.offsets, place, side="right")) - 1
        pieces = [self.store.waveform(index, place - int(self.store.offsets[index]))]
        while sum(map(len, pieces)) < n_samples:
            pieces.append(self.store.waveform(int(rng.integers(len(self.store)))))
        return np.concatenate(pieces)[:n_samples]


def equalize(
    waveform: NDArray[np.float32], sample_rate: int, max_db: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Colour a waveform (time,) by a slope about 1 kHz and a shelf at either end; its RMS stays.

    Args:
        waveform: float32.
        sample_rate: Hz.
        max_db: Each of the three is drawn from -`max_db` to `max_db`; the slope takes four octaves to it.
        rng: Draws the curve.
    """
    slope, low, high = rng.uniform(-max_db, max_db, 3)
    low_corner, high_corner = np.exp(rng.uniform(np.log([100, 1500]), np.log([400, 3500])))
    frequency = np.maximum(_frequencies(len(waveform), sample_rate), 1.0)
    gain_db = slope * np.clip(np.log2(frequency / 1000) / 4, -1, 1)
    gain_db += low / (1 + (frequency / low_corner) ** 2) + high / (1 + (high_corner / frequency) ** 2)
    coloured = _filter(waveform, 10 ** (gain_db / 20))
    return coloured * np.float32(rms(waveform) / max(rms(coloured), 1e-9))


def low_pass(tracks: NDArray[np.float32], sample_rate: int, limit: float) -> NDArray[np.float32]:
    """Cut off everything above a limit in Hz from tracks (track, time), without delay."""
    frequency = _frequencies(tracks.shape[-1], sample_rate)
    slope = np.clip((limit - frequency) / (_ROLL_OFF * limit), -1, 0)  # 0 below the limit, then down to -1
    return _filter(tracks, 0.5 * (1 + np.cos(np.pi * slope)))


def _frequencies(n_samples: int, sample_rate: int) -> NDArray[np.floating]:
    return np.fft.rfftfreq(n_samples + _PADDING, 1 / sample_rate)


def _filter(tracks: NDArray[np.float32], gain: NDArray[np.floating]) -> NDArray[np.float32]:
    """Multiply the spectrum of (..., time) by a gain at each of its `_frequencies`."""
    n_samples = tracks.shape[-1]
    spectrum = np.fft.rfft(tracks, n_samples + _PADDING) * gain
    return np.fft.irfft(spectrum, n_samples + _PADDING)[..., :n_samples].astype(np.float32)
