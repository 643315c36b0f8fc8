"""How many talk at a time, as a network hears it that has heard real meetings.

The network is PyanNet of pyannote.audio with the published weights of `pyannote/segmentation-3.0` (Plaquet
and Bredin, Interspeech 2023, arXiv:2310.13025; MIT licence): band-pass filters (SincNet), convolutions, and
a recurrent network in both directions, which tells for every 17 ms who of three people in 10 s talk, two at
most. Here it counts. `flasepformer.training.segmentation` makes the package's file of the published weights.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from flasepformer.conversation.frames import FRAMES_PER_SECOND
from flasepformer.inference.finishing import Passed, read_resampled
from flasepformer.models.packaged import packaged

WEIGHTS = "pretrained/conversation/segmentation.safetensors"
SAMPLE_RATE = 16_000
"""Of what is listened to, in Hz."""
WINDOW_SECONDS, STEP_SECONDS = 10.0, 5.0
"""Every moment but the first and the last ones is heard twice."""
EDGE_SECONDS = 1.0
"""Near the ends of a window less is known of what is around."""
N_FILTERS, FILTER_LENGTH, STRIDE, POOL = 80, 251, 10, 3
CLASSES = ((0,), (1, 2, 3), (4, 5, 6))
"""Classes in which nobody talks, one of three people, and two of them."""
HOP = STRIDE * POOL**3
"""Samples from one of its frames to the next."""
FIRST = FILTER_LENGTH // 2 + STRIDE * (1 + 2 * POOL + POOL + 2 * POOL**2 + POOL**2)
"""Sample in the middle of its first frame."""

_LEAST = 2 * FIRST + 1 + HOP  # samples of two frames, which its norms need
_AT_ONCE = 2


class SegmentationNetwork(nn.Module):
    """Map waveforms (batch, time) at 16 kHz to the log probabilities (batch, frame, 7) of its classes.

    The filters of the published network are stored as they are, so that their edges do not train.
    """

    def __init__(self, n_channels: int = 60, n_hidden: int = 128) -> None:
        super().__init__()
        self.enter = nn.InstanceNorm1d(1, affine=True)
        self.filters = nn.Conv1d(1, N_FILTERS, FILTER_LENGTH, STRIDE, bias=False)
        self.convolutions = nn.ModuleList(nn.Conv1d(n, n_channels, 5) for n in (N_FILTERS, n_channels))
        self.norms = nn.ModuleList(
            nn.InstanceNorm1d(n, affine=True) for n in (N_FILTERS, n_channels, n_channels)
        )
        self.recurrent = nn.LSTM(n_channels, n_hidden, 4, batch_first=True, bidirectional=True)
        self.linears = nn.ModuleList(nn.Linear(n, n_hidden) for n in (2 * n_hidden, n_hidden))
        self.leave = nn.Linear(n_hidden, 7)

    def forward(self, waveform: Tensor) -> Tensor:
        x = self.filters(self.enter(waveform[:, None])).abs()
        x = F.leaky_relu(self.norms[0](F.max_pool1d(x, POOL)))
        for convolution, norm in zip(self.convolutions, self.norms[1:], strict=True):
            x = F.leaky_relu(norm(F.max_pool1d(convolution(x), POOL)))
        x = self.recurrent(x.mT)[0]
        for linear in self.linears:
            x = F.leaky_relu(linear(x))
        return F.log_softmax(self.leave(x), -1)


@cache
def load_segmentation_network() -> SegmentationNetwork:
    """Load the network of the package."""
    return packaged(SegmentationNetwork(), WEIGHTS)


@torch.inference_mode()
def segmented_chances(passed: Passed, n_frames: int) -> NDArray[np.float32]:
    """Return the probabilities (3, frame) that nobody, one and two or more talk; read in windows.

    The last window ends with the recording; a recording that is shorter than a window is one.

    Args:
        passed: What is read from: its recording, the whole band.
        n_frames: How many there are, of 20 ms.
    """
    network, n = load_segmentation_network(), -(-n_frames * SAMPLE_RATE // FRAMES_PER_SECOND)
    length = min(round(WINDOW_SECONDS * SAMPLE_RATE), n)
    starts = [*range(0, n - length, round(STEP_SECONDS * SAMPLE_RATE)), n - length]
    sums, weights = np.zeros((3, n_frames), np.float32), np.zeros(n_frames, np.float32)
    for at in range(0, len(starts), _AT_ONCE):
        some = starts[at : at + _AT_ONCE]
        samples = np.stack(
            [
                read_resampled(
                    passed.recording, passed.n_samples, passed.sample_rate, SAMPLE_RATE,
                    start, start + max(length, _LEAST),
                )
                for start in some
            ]
        )  # fmt: skip
        found = network(torch.from_numpy(np.ascontiguousarray(samples, np.float32))).exp().numpy()
        for start, chances in zip(some, found, strict=True):
            _add(chances, start, length, sums, weights)
    return sums / weights


def _add(
    chances: NDArray[np.floating[Any]],
    start: int,
    length: int,
    sums: NDArray[np.float32],
    weights: NDArray[np.float32],
) -> None:
    """Add what is said of a window from its first sample on, with less weight near its ends."""
    frame = SAMPLE_RATE // FRAMES_PER_SECOND
    first, last = -(-start // frame), min(-(-(start + length) // frame), len(weights))
    middles = (np.arange(first, last) + 0.5) * frame - start  # in samples of the window
    weight = np.minimum(np.minimum(middles, length - middles) / (EDGE_SECONDS * SAMPLE_RATE) + 0.05, 1.0)
    weight = np.maximum(weight, 0.05)
    heard_at = FIRST + HOP * np.arange(len(chances))
    for total, classes in zip(sums, CLASSES, strict=True):
        total[first:last] += weight * np.interp(middles, heard_at, chances[:, classes].sum(-1))
    weights[first:last] += weight
