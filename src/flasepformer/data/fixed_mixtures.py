"""Training examples from mixtures on disk: segments cut at random, the mixtures as they were published."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

from flasepformer.data.mixture_manifest import MixtureFiles
from flasepformer.data.speech_store import MAX_CORRUPT_SHARE

_N_CUTS = 10  # of one mixture, before a silent source is taken as it is


class Examples(Protocol):
    """What training draws from: an endless list in which example `index` is always the same."""

    def example(self, index: int) -> tuple[Tensor, Tensor]:
        """Return mixture (time,) and sources (source, time), float32."""
        ...


class FixedMixtures:
    """An endless list of training examples from mixtures on disk.

    Example `i` depends on the seed and on `i` only. Every mixture comes once in each epoch of `len(self)`
    examples, each epoch in an order of its own. A segment in which a source is silent is cut again, a few
    times. A mixture that cannot be read is replaced by the next one and noted in `corrupt`.

    Args:
        files: The mixtures, all at one sample rate; see `read_mixture_manifest`.
        segment_seconds: Length of every example, shorter mixtures are followed by silence; None takes
            each mixture whole.
        seed: Another seed, other orders and segments.
        max_corrupt_share: Largest share of the mixtures that may be corrupt; 1 leaves it to the caller, who
            may know what other processes have found.

    Raises:
        ValueError: There is no mixture, or they have several sample rates.
    """

    def __init__(
        self,
        files: Sequence[MixtureFiles],
        segment_seconds: float | None,
        seed: int,
        *,
        max_corrupt_share: float = MAX_CORRUPT_SHARE,
    ) -> None:
        rates = {item.sample_rate for item in files}
        if len(rates) != 1:
            raise ValueError(f"mixtures to train on need one sample rate, these have {sorted(rates)} Hz")
        self.files, self.seed, self.max_corrupt_share = files, seed, max_corrupt_share
        (self.sample_rate,) = rates
        self.n_samples = None if segment_seconds is None else round(segment_seconds * self.sample_rate)
        self.corrupt: dict[str, str] = {}
        """Name and fault of every mixture that could not be read so far, in this process."""
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self.files)

    def example(self, index: int) -> tuple[Tensor, Tensor]:
        """Return mixture (time,) and sources (source, time), float32.

        Raises:
            ValueError: More mixtures are corrupt than may be, or all of them.
        """
        epoch, position = divmod(index, len(self.files))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.seed, epoch]).permutation(len(self.files))
        for step in range(len(self.files)):
            item = self.files[self._order[(position + step) % len(self.files)]]
            try:
                return self._cut(item, np.random.default_rng([self.seed, index, 1]))
            except (OSError, soundfile.LibsndfileError, _CorruptError) as error:
                self._note(item, str(error))
        raise ValueError(f"all {len(self.files)} mixtures are corrupt; {self._first_faults()}")

    def _note(self, item: MixtureFiles, reason: str) -> None:
        self.corrupt[item.name] = reason
        if len(self.corrupt) > self.max_corrupt_share * len(self.files):
            raise ValueError(
                f"{len(self.corrupt)} of {len(self.files)} mixtures are corrupt, more than "
                f"{100 * self.max_corrupt_share:g}%; {self._first_faults()}"
            )

    def _first_faults(self) -> str:
        return "; ".join(f"{name}: {fault}" for name, fault in list(self.corrupt.items())[:3])

    def _cut(self, item: MixtureFiles, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        n_samples = self.n_samples or item.n_samples
        for _ in range(_N_CUTS):
            start = int(rng.integers(max(item.n_samples - n_samples, 0) + 1))
            sources = np.stack([_read(path, start, n_samples, item) for path in item.sources])
            if sources.any(axis=1).all():
                break
        mixture = _read(item.mixture, start, n_samples, item)
        return torch.from_numpy(mixture), torch.from_numpy(sources)


class _CorruptError(ValueError):
    """A track is not what the manifest says."""


def _read(path: Path, start: int, n_samples: int, item: MixtureFiles) -> NDArray[np.float32]:
    """Return `n_samples` (time,) of a track, followed by silence where it ends."""
    with soundfile.SoundFile(path) as sound:
        form = (sound.frames, sound.samplerate, sound.channels)
        expected = (item.n_samples, item.sample_rate, 1)
        if form != expected:
            raise _CorruptError(f"{path} has (samples, rate, channels) {form}, its manifest says {expected}")
        sound.seek(start)
        segment = sound.read(n_samples, dtype="float32")
    if len(segment) != min(n_samples, item.n_samples - start) or not np.isfinite(segment).all():
        raise _CorruptError(f"{path} is cut short, or holds samples that are not numbers")
    return np.pad(segment, (0, n_samples - len(segment)))
