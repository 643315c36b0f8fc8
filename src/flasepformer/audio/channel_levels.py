"""Who talks into which microphone, told by the levels of two channels over time."""

import numpy as np
from numpy.typing import NDArray

_FRAMES_PER_SECOND = 50
_SMOOTH = 5  # frames: 0.1 s
_HEARD_DB = -35.0  # of the loudest: what is quieter tells nothing
_AHEAD_DB = 6.0
"""A channel leads where it is louder by this."""
_APART_DB, _LEAST_APART_DB = 9.0, 3.0
"""A channel is this much louder where it leads than where the other one does, if a talker has it alone: both
taken together, so that it is no matter who talks louder; and each of them at least."""
_STEADY_DB, _STEADY_SHARE = 9.0, 0.5
"""A talker is louder on one channel than on the other by about as much all the time; noise is not. Between
the quarters of the time lies at most so much, or so large a share of how far the channels are apart."""
_MOST_UNLED = 0.4
"""Of the time with sound in which none leads: two microphones of one room."""
_LEAST_SHARE = 0.04
"""Of the time with sound that each channel has to lead."""
_VARIES_DB = 15.0
"""Between the loud and the quiet tenth of speech; hum has next to nothing, most music less."""
_SILENT_DB = -80.0


class ChannelLevels:
    """Measures two channels in frames of 20 ms, block by block.

    Args:
        sample_rate: In Hz.
    """

    def __init__(self, sample_rate: float) -> None:
        self._length = max(1, round(sample_rate / _FRAMES_PER_SECOND))
        self._rest: NDArray[np.floating] | None = None
        self._powers: list[NDArray[np.float32]] = []

    def add(self, block: NDArray[np.floating]) -> None:
        """Look at the next samples (2, time)."""
        if self._rest is not None:
            block = np.concatenate([self._rest, block], axis=1)
        n = block.shape[1] // self._length
        whole = block[:, : n * self._length].reshape(2, n, self._length)
        offset = whole.mean(-1, dtype=np.float64, keepdims=True)
        self._powers.append(np.square(whole - offset).mean(-1).astype(np.float32))
        self._rest = block[:, n * self._length :].copy()

    def levels(self) -> NDArray[np.float64]:
        """Return the levels (2, frame) in dB, smoothed over 0.1 s."""
        powers = np.concatenate([np.zeros((2, 0), np.float32), *self._powers], axis=1)
        if powers.shape[1] < _SMOOTH:
            return np.zeros((2, 0))
        sums = np.cumsum(np.pad(powers, ((0, 0), (1, 0))), axis=1, dtype=np.float64)
        return np.asarray(10 * np.log10((sums[:, _SMOOTH:] - sums[:, :-_SMOOTH]) / _SMOOTH + 1e-12))

    def vary_like_speech(self) -> bool:
        """Tell whether both channels have loud and quiet times, as speech has, and hum has not."""
        levels = self.levels()
        if not levels.shape[1]:
            return False
        loud, quiet = np.percentile(levels, [95, 10], axis=1)
        return bool((loud - np.maximum(quiet, _SILENT_DB) >= _VARIES_DB).all())

    def take_turns(self) -> bool:
        """Tell whether each channel has a talker of its own, with the other one's as crosstalk at most.

        Then each leads for some of the time, by about as much all the time, and is much quieter while the
        other one leads. Hum, noise or music beside both talkers is as loud as ever then, or leads by now this
        and now that; and of two microphones in the middle of the table none ever leads.
        """
        levels = self.levels()
        if not levels.shape[1]:
            return False
        heard = levels.max(0) > max(levels.max() + _HEARD_DB, _SILENT_DB)
        ahead = levels[0] - levels[1]
        leads = heard & np.stack([ahead > _AHEAD_DB, ahead < -_AHEAD_DB])
        if not (leads.sum(1) >= max(_LEAST_SHARE * heard.sum(), _FRAMES_PER_SECOND / 2)).all():
            return False
        own = np.array([levels[k, leads[k]].mean() - levels[k, leads[1 - k]].mean() for k in (0, 1)])
        spread = max(np.subtract(*np.percentile(ahead[lead], [75, 25])) for lead in leads)
        return bool(
            own.mean() >= _APART_DB
            and own.min() >= _LEAST_APART_DB
            and spread <= max(_STEADY_DB, _STEADY_SHARE * own.mean())
            and (heard & ~leads.any(0)).sum() <= _MOST_UNLED * heard.sum()
        )
