"""How many talk at a time, none, one or two: told by the recording and by what a model made of it.

Levels alone cannot tell a quiet second talker from what a model leaves of the first one in the other track.
The spectra can: a remainder has the first one's. A small network hears 0.6 s to either side of a frame; it
was trained on conversations, monologues and noise separated by the default model (`training.counting`). It
knows little of noise and rooms, where a second network knows more, which hears the recording alone
(`segmentation`). What is believed lies between both.
"""

import math
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from flasepformer.conversation.frames import Frames, smoothed
from flasepformer.conversation.mels import N_MELS, read_mels
from flasepformer.conversation.segmentation import segmented_chances
from flasepformer.inference.finishing import Passed
from flasepformer.models.packaged import packaged

WEIGHTS = "pretrained/conversation/counting.safetensors"
DILATIONS = (1, 2, 4, 8, 16)
CONTEXT = sum(DILATIONS)
"""Frames that the network hears on either side."""
RANK_FRAMES = 25
"""Over which it is decided which track is the louder one."""

SPEECH_ODDS = (0.7, 0.5)
"""What the log odds of speech count that this network and the one of `segmentation` tell."""
BOTH_ODDS, BOTH_BIAS = (0.5, 1.0), 0.7
"""The same of those that two talk and not one, and what is added: the second network hears too few."""

_FLOOR = 1e-6
SILENCE = math.log(_FLOOR) / 4 + 2
"""The feature of a band in which there is nothing."""
_AT_ONCE = 1500
_LEAST_CHANCE = 1e-4


class CountNetwork(nn.Module):
    """Map features (batch, frames, 3 * mels) to logits (batch, frames, 3) of none, one and two talkers."""

    def __init__(self, n_channels: int = 112) -> None:
        super().__init__()
        self.enter = nn.Conv1d(3 * N_MELS, n_channels, 1)
        self.layers = nn.ModuleList(
            nn.Conv1d(n_channels, n_channels, 3, dilation=dilation, padding=dilation)
            for dilation in DILATIONS
        )
        self.dropout = nn.Dropout(0.2)
        self.leave = nn.Conv1d(n_channels, 3, 1)

    def forward(self, features: Tensor) -> Tensor:
        x = F.silu(self.enter(features.mT))
        for layer in self.layers:
            x = x + self.dropout(F.silu(layer(x)))
        return self.leave(x).mT


def loud_power(frames: Frames) -> float:
    """Return the power of the loud speech in a recording, which all features are measured against."""
    heard = frames.mixture[frames.mixture > 1e-8]
    return float(np.percentile(heard, 95)) if len(heard) else 1.0


def features(passed: Passed, frames: Frames, first: int, last: int, reference: float) -> Tensor:
    """Return features (frames, 3 * mels): of the recording, of the louder and of the lesser track.

    More than two tracks count by their loudest two.

    Args:
        passed: What they are read from.
        frames: Its powers.
        first: Frame.
        last: The one after the last.
        reference: See `loud_power`.
    """
    rate, n = passed.estimate_rate, passed.n_estimate_samples
    mixture = read_mels(passed.mixture, n, rate, first, last)
    tracks = read_mels(passed.estimates, n, rate, first, last)
    begin, end = max(first - RANK_FRAMES, 0), min(last + RANK_FRAMES, len(frames))
    levels = smoothed(frames.estimates[:, begin:end], RANK_FRAMES)[:, first - begin : last - begin]
    order = torch.from_numpy(np.argsort(-levels, axis=0)[:2].copy())
    ranked = tracks.gather(0, order[..., None].expand(-1, -1, N_MELS))
    parts = torch.cat([mixture[None], ranked]).exp() / reference + _FLOOR
    return (parts.log() / 4 + 2).movedim(0, 1).flatten(1)


@cache
def load_count_network() -> CountNetwork:
    """Load the trained network of the package."""
    return packaged(CountNetwork(), WEIGHTS)


def talker_chances(passed: Passed, frames: Frames) -> NDArray[np.float32]:
    """Return the probabilities (3, frame) that nobody, one and two talk; read in pieces."""
    return between(tracked_chances(passed, frames), segmented_chances(passed, len(frames)))


def between(tracked: NDArray[np.float32], segmented: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the probabilities (3, frame) that lie between those of the tracks and of the recording alone."""
    logs = np.log(np.maximum(np.stack([tracked, segmented]), _LEAST_CHANCE))  # (network, count, frame)
    speech = np.log(np.maximum(1 - np.stack([tracked[0], segmented[0]]), _LEAST_CHANCE)) - logs[:, 0]
    both = np.array(BOTH_ODDS, np.float32) @ (logs[:, 2] - logs[:, 1]) + np.float32(BOTH_BIAS)
    talks = 1 / (1 + np.exp(-np.array(SPEECH_ODDS, np.float32) @ speech))
    two = talks / (1 + np.exp(-both))
    return np.stack([1 - talks, talks - two, two])


@torch.inference_mode()
def tracked_chances(passed: Passed, frames: Frames) -> NDArray[np.float32]:
    """Return the same by the network that knows the tracks."""
    network, reference, n = load_count_network(), loud_power(frames), len(frames)
    chances = np.empty((3, n), np.float32)
    for first in range(0, n, _AT_ONCE):
        last = min(first + _AT_ONCE, n)
        begin, end = max(first - CONTEXT, 0), min(last + CONTEXT, n)
        logits = network(features(passed, frames, begin, end, reference)[None])[0]
        chances[:, first:last] = logits.softmax(-1)[first - begin : last - begin].mT.numpy()
    return chances
