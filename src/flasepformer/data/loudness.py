"""How loud a recording is to a listener: ITU-R BS.1770."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flasepformer.installing import how_to_install

_GATE_SECONDS = 0.4  # block of the standard


def loudness(waveform: NDArray[np.float32], sample_rate: int) -> float:
    """Return the integrated loudness of a waveform (time,) in LUFS; -inf where all of it is below -70 LUFS.

    Shorter than the 0.4 s of the standard it is measured as one block of its own length.
    """
    if not waveform.any():
        return float("-inf")
    block_seconds = min(_GATE_SECONDS, 0.999 * len(waveform) / sample_rate)
    meter = load_pyloudnorm().Meter(sample_rate, block_size=block_seconds)
    with np.errstate(divide="ignore", invalid="ignore"):  # nothing above the gate: its logarithm is -inf
        return float(meter.integrated_loudness(waveform.astype(np.float64)))


def load_pyloudnorm() -> Any:
    """Import the meter.

    Raises:
        ImportError: The extra "data" is missing.
    """
    try:
        import pyloudnorm
    except ImportError as error:
        raise ImportError(f'loudness needs the extra "data": {how_to_install("data")}') from error
    return pyloudnorm
