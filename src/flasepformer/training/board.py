"""TensorBoard of a run: its numbers, and how a few validation mixtures sound and look."""

import errno
import os
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from flasepformer.ops.stft import stft
from flasepformer.training.run_folder import BOARD_FOLDER, unless_disk_full

_WINDOW_SECONDS = 0.032
_N_COLUMNS = 400
_RANGE_DB = 60.0
_BYTES_OF_NUMBERS = 4096
_RETRY_SECONDS = 600.0  # after a full disk; each attempt leaves an empty file if it is in vain


class Board:
    """What TensorBoard shows of a run. A full disk costs what could not be written, never the run.

    Only the main process may write.

    Args:
        accelerator: Of the run; its tracker is started here and finished by `close`.
        step: Of the run; what an earlier part of it showed beyond is hidden.
    """

    def __init__(self, accelerator: Any, step: int) -> None:
        self._accelerator = accelerator
        accelerator.init_trackers(BOARD_FOLDER, init_kwargs={"tensorboard": {"purge_step": step + 1}})
        self._tracker = accelerator.get_tracker("tensorboard")
        self._broken_since: float | None = None
        self._named: set[str] = set()

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to the chart of each value."""
        self._write(_BYTES_OF_NUMBERS, lambda: self._tracker.log(dict(values), step=step))

    def mixture(
        self, name: str, mixture: Tensor, sources: Tensor, estimates: Tensor, sample_rate: int, step: int
    ) -> None:
        """Add the tracks of a mixture and the spectrograms of all of them, one below the other.

        Mixture and sources are the same at every step and so are written once. An estimate has no level of
        its own; it gets the one at which it comes closest to its source, or to the mixture if that is silent.

        Args:
            name: Tells the mixtures apart.
            mixture: (time,).
            sources: (source, time).
            estimates: (source, time), each of the source in its place.
            sample_rate: Hz.
            step: Of the run.
        """
        estimates = estimates.nan_to_num(0.0, 0.0, 0.0)
        power = estimates.square().sum(-1, keepdim=True)
        targets = torch.where(sources.any(-1, keepdim=True), sources, mixture)
        levels = (estimates * targets).sum(-1, keepdim=True) / power.clamp_min(1e-30)
        tracks = {"mixture": mixture}
        tracks |= {f"source_{k}": source for k, source in enumerate(sources, start=1)}
        fitted = {f"estimate_{k}": estimate for k, estimate in enumerate(levels * estimates, start=1)}
        heard = fitted if name in self._named else tracks | fitted
        picture = spectrograms(torch.stack([*tracks.values(), *fitted.values()]), sample_rate)

        def write() -> None:
            for label, track in heard.items():
                self._tracker.writer.add_audio(f"{name}/{label}", track.clamp(-1, 1), step, sample_rate)
            self._tracker.writer.add_image(f"{name}/spectrograms", picture, step, dataformats="HW")
            self._tracker.writer.flush()
            self._named.add(name)

        self._write(2 * sum(map(len, heard.values())) + picture.size, write)

    def close(self) -> None:
        """Write what is left."""
        for tracker in self._accelerator.trackers:
            unless_disk_full(tracker.finish)

    def _write(self, n_bytes: int, write: Callable[[], None]) -> None:
        def write_if_it_fits() -> None:
            folder = self._tracker.writer.get_logdir()
            if shutil.disk_usage(folder).free < n_bytes:  # or the writer's thread dies, with a traceback
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), folder)
            if self._broken_since is not None:  # and such a writer refuses for good
                self._tracker.writer = type(self._tracker.writer)(folder)
                self._broken_since = None
            try:
                write()
            except OSError:
                self._broken_since = time.monotonic()
                raise

        if self._broken_since is None or time.monotonic() - self._broken_since >= _RETRY_SECONDS:
            unless_disk_full(write_if_it_fits)


def spectrograms(tracks: Tensor, sample_rate: int) -> NDArray[np.uint8]:
    """Draw the levels of tracks over time and frequency, one below the other, high frequencies on top.

    Args:
        tracks: (track, time).
        sample_rate: Hz.

    Returns:
        (row, column) from black, 60 dB below the loudest level of the first track, to white; a grey line
        below each track.
    """
    n_fft = 2 * round(_WINDOW_SECONDS * sample_rate / 2)
    hop = max(n_fft // 4, -(-tracks.shape[-1] // _N_COLUMNS))
    levels = 20 * stft(tracks.cpu(), n_fft, hop).abs().clamp_min(1e-9).log10()  # (track, column, row)
    shades = (255 * (1 + (levels - levels[0].amax()) / _RANGE_DB)).clamp(0, 255).to(torch.uint8)
    lined = F.pad(shades.mT.flip(1), (0, 0, 0, 1), value=128)
    return lined.flatten(0, 1).numpy()
