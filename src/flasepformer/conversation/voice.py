"""A voice as a point: utterances of one person lie close together, those of two people apart.

A small network over a mel spectrogram, trained here to tell 1,741 people apart (`training.voices`): frames,
their weighted mean and spread over the utterance, a vector of length 1 (in the manner of x-vectors: Snyder et
al., ICASSP 2018; attentive statistics: Okabe et al., Interspeech 2018, arXiv:1803.10963).
"""

from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from flasepformer.conversation.mels import N_MELS

WEIGHTS = "pretrained/conversation/voice.safetensors"


class VoiceNetwork(nn.Module):
    """Map log mel powers (batch, frames, mels) to voices (batch, n_dims) of length 1.

    The level of an utterance is taken out, so that a voice is the same from near and from far.
    """

    def __init__(self, n_channels: int = 160, n_dims: int = 128) -> None:
        super().__init__()
        n, n_wide = n_channels, 2 * n_channels
        self.frames = nn.Sequential(
            nn.Conv1d(N_MELS, n, 5, stride=2, padding=2), nn.ReLU(), nn.BatchNorm1d(n),
            nn.Conv1d(n, n, 3, padding=2, dilation=2), nn.ReLU(), nn.BatchNorm1d(n),
            nn.Conv1d(n, n, 3, padding=3, dilation=3), nn.ReLU(), nn.BatchNorm1d(n),
            nn.Conv1d(n, n_wide, 1), nn.ReLU(), nn.BatchNorm1d(n_wide),
        )  # fmt: skip
        self.weigh = nn.Sequential(nn.Conv1d(n_wide, 64, 1), nn.Tanh(), nn.Conv1d(64, n_wide, 1))
        self.norm = nn.BatchNorm1d(2 * n_wide)
        self.project = nn.Linear(2 * n_wide, n_dims)

    def forward(self, mels: Tensor) -> Tensor:
        mels = mels - mels.mean((1, 2), keepdim=True)
        x = self.frames(mels.mT)  # (batch, channels, frames)
        weights = self.weigh(x).softmax(-1)
        mean = (weights * x).sum(-1)
        spread = ((weights * x.square()).sum(-1) - mean.square()).clamp_min(1e-5).sqrt()
        return F.normalize(self.project(self.norm(torch.cat([mean, spread], -1))), dim=-1)


def read_voice_network(path: Path) -> VoiceNetwork:
    """Read a network that `flasepformer.training.voices` has stored."""
    network = VoiceNetwork()
    weights = {name: value.float() for name, value in load_file(path).items()}
    network.load_state_dict(weights, strict=False)  # the counters of the norms are not stored
    return network.eval()


@cache
def load_voice_network() -> VoiceNetwork:
    """Load the trained network of the package."""
    with as_file(files("flasepformer") / WEIGHTS) as path:
        return read_voice_network(path)


@torch.inference_mode()
def voice_of(mels: Tensor) -> NDArray[np.float32]:
    """Return the voice (n_dims,) in log mel powers (frames, mels) of speech, of length 1."""
    return load_voice_network()(mels[None].float())[0].numpy()
