"""A voice as a point: utterances of one person lie close together, those of two people apart.

A small network over a mel spectrogram, trained here to tell 1,741 people apart (`training.voices`): frames,
their weighted mean and spread over the utterance, a vector of length 1. It is an ECAPA-TDNN in small
(Desplanques et al., Interspeech 2020, arXiv:2005.07143).
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

    def __init__(self, n_channels: int = 192, n_dims: int = 128) -> None:
        super().__init__()
        n, n_wide, n_hidden = n_channels, 2 * n_channels, 64
        self.enter = _layer(N_MELS, n, 5, stride=2)
        self.blocks = nn.ModuleList(_Block(n, dilation) for dilation in (2, 3, 4))
        self.join = nn.Sequential(nn.Conv1d(len(self.blocks) * n, n_wide, 1), nn.ReLU())
        self.look = nn.Conv1d(n_wide, n_hidden, 1)
        self.compare = nn.Linear(2 * n_wide, n_hidden, bias=False)
        self.weigh = nn.Conv1d(n_hidden, n_wide, 1)
        self.norm = nn.BatchNorm1d(2 * n_wide)
        self.project = nn.Linear(2 * n_wide, n_dims)

    def forward(self, mels: Tensor) -> Tensor:
        mels = mels - mels.mean((1, 2), keepdim=True)
        x, found = self.enter(mels.mT), []  # (batch, channels, frames)
        for block in self.blocks:
            x = block(x)
            found.append(x)
        x = self.join(torch.cat(found, 1))
        even = x.new_full((), 1 / x.shape[-1])
        seen = self.look(x) + self.compare(_mean_and_spread(x, even))[..., None]
        weights = self.weigh(seen.tanh()).softmax(-1)
        return F.normalize(self.project(self.norm(_mean_and_spread(x, weights))), dim=-1)


class _Block(nn.Module):
    """Neighbouring frames at several distances (Res2Net), and each channel by what it is on average."""

    def __init__(self, n_channels: int, dilation: int, n_parts: int = 4, n_hidden: int = 64) -> None:
        super().__init__()
        n = self.n_part = n_channels // n_parts
        self.enter = _layer(n_channels, n_channels, 1)
        self.parts = nn.ModuleList(_layer(n, n, 3, dilation=dilation) for _ in range(n_parts - 1))
        self.leave = _layer(n_channels, n_channels, 1)
        self.scale = nn.Sequential(
            nn.Linear(n_channels, n_hidden), nn.ReLU(), nn.Linear(n_hidden, n_channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = self.enter(x).split(self.n_part, 1)
        found, last = [first], torch.zeros_like(first)
        for layer, part in zip(self.parts, rest, strict=True):
            last = layer(part + last)
            found.append(last)
        y = self.leave(torch.cat(found, 1))
        return x + y * self.scale(y.mean(-1))[..., None]


def _layer(n_in: int, n_out: int, kernel_size: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    conv = nn.Conv1d(n_in, n_out, kernel_size, stride, dilation * (kernel_size // 2), dilation)
    return nn.Sequential(conv, nn.ReLU(), nn.BatchNorm1d(n_out))


def _mean_and_spread(x: Tensor, weights: Tensor) -> Tensor:
    """Return mean and standard deviation (batch, 2 * channels) of x (batch, channels, frames)."""
    mean = (weights * x).sum(-1)
    spread = ((weights * x.square()).sum(-1) - mean.square()).clamp_min(1e-5).sqrt()
    return torch.cat([mean, spread], -1)


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
