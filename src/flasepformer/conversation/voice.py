"""A voice as a point: utterances of one person lie close together, those of two people apart.

The network is CAM++ (Wang et al., Interspeech 2023, arXiv:2303.00332): a few convolutions over time and
frequency, then densely connected ones over time, each gated by what is said around it. Its weights are those
that 3D-Speaker has published for Mandarin and English (Apache License 2.0), which have heard far more people
than there are in our training set; `flasepformer.training.voices` makes the package's file of theirs.
"""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from flasepformer.conversation.mels import mel_of
from flasepformer.inference.finishing import Samples
from flasepformer.models.packaged import packaged, with_weights

WEIGHTS = "pretrained/conversation/voice.safetensors"
SAMPLE_RATE = 16_000
"""Of what is listened to, in Hz."""
WINDOW, HOP, N_FFT = 400, 160, 512
"""Samples: 25 ms every 10 ms."""
N_MELS = 80
LOWEST_HZ = 20.0
PREEMPHASIS = 0.97
BLOCKS = ((12, 1), (24, 2), (16, 2))
"""Layers of each densely connected block, and their dilation."""
LEVEL = 0.05
"""Root mean square that every utterance is brought to, so that a voice is the same from near and from far."""

_FLOOR = 1.1920929e-07


class VoiceNetwork(nn.Module):
    """Map waveforms (batch, time) at 16 kHz to voices (batch, n_dims) of length 1.

    The norms of the published network are part of its layers here, so that it does not train.
    """

    def __init__(self, n_channels: int = 32, n_dims: int = 192) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, n_channels, 3, padding=1)
        self.residuals = nn.ModuleList(_Residual(n_channels, stride) for stride in (2, 1, 2, 1))
        self.lower = nn.Conv2d(n_channels, n_channels, 3, (2, 1), 1)
        self.flatten = nn.Conv1d(n_channels * N_MELS // 8, 4 * n_channels, 5, 2, 2)
        self.blocks, n = nn.ModuleList(), 4 * n_channels
        for n_layers, dilation in BLOCKS:
            self.blocks.append(_DenseBlock(n, n_layers, n_channels, dilation))
            n = (n + n_layers * n_channels) // 2
        self.leave = _Rise(n)
        self.project = nn.Linear(2 * n, n_dims)

    def forward(self, waveform: Tensor) -> Tensor:
        level = waveform.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-8)
        mels = log_mel(waveform * (LEVEL / level))
        x = (mels - mels.mean(1, keepdim=True)).mT[:, None]  # (batch, 1, mels, frames)
        x = self.enter(x).relu()
        for residual in self.residuals:
            x = residual(x)
        x = self.flatten(self.lower(x).relu().flatten(1, 2)).relu()
        for block in self.blocks:
            x = block(x)
        x = self.leave(x)
        return F.normalize(self.project(torch.cat([x.mean(-1), x.std(-1)], -1)), dim=-1)


class _Residual(nn.Module):
    """Two convolutions beside a straight way, over fewer mels if there is a stride."""

    def __init__(self, n_channels: int, stride: int) -> None:
        super().__init__()
        n = n_channels
        self.first = nn.Conv2d(n, n, 3, (stride, 1), 1)
        self.second = nn.Conv2d(n, n, 3, padding=1)
        self.beside = nn.Conv2d(n, n, 1, (stride, 1)) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return (self.second(self.first(x).relu()) + self.beside(x)).relu()


class _DenseBlock(nn.Module):
    """Layers each of which hears all before it; half as many channels go on."""

    def __init__(self, n_channels: int, n_layers: int, n_grown: int, dilation: int) -> None:
        super().__init__()
        n_inputs = [n_channels + k * n_grown for k in range(n_layers + 1)]
        self.layers = nn.ModuleList(_DenseLayer(n, n_grown, dilation) for n in n_inputs[:-1])
        self.rise = _Rise(n_inputs[-1])
        self.leave = nn.Conv1d(n_inputs[-1], n_inputs[-1] // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.leave(self.rise(x))


class _DenseLayer(nn.Module):
    """New channels from all there are, each turned up or down by the whole and by the second around it."""

    N_FRAMES = 100

    def __init__(self, n_inputs: int, n_grown: int, dilation: int) -> None:
        super().__init__()
        n_inner, n_hidden = 4 * n_grown, 2 * n_grown
        self.rise = _Rise(n_inputs)
        self.enter = nn.Conv1d(n_inputs, n_inner, 1)
        self.local = nn.Conv1d(n_inner, n_grown, 3, 1, dilation, dilation, bias=False)
        self.around = nn.Conv1d(n_inner, n_hidden, 1)
        self.gate = nn.Conv1d(n_hidden, n_grown, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(self.rise(x)).relu()
        around = x.mean(-1, keepdim=True) + F.avg_pool1d(x, self.N_FRAMES, ceil_mode=True)
        gate = self.gate(self.around(around).relu()).sigmoid()
        return self.local(x) * gate.repeat_interleave(self.N_FRAMES, -1)[..., : x.shape[-1]]


class _Rise(nn.Module):
    """A norm of known mean and variance (a scale and a shift of each channel), and what is positive of it."""

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_channels, 1))
        self.bias = nn.Parameter(torch.zeros(n_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, x, self.weight).relu()


@cache
def _filters() -> Tensor:
    """Return triangles of equal width in mel, 20 Hz to 8 kHz: (bins, mels)."""
    edges = np.linspace(mel_of(LOWEST_HZ), mel_of(SAMPLE_RATE / 2), N_MELS + 2)
    bins = np.array([mel_of(k * SAMPLE_RATE / N_FFT) for k in range(N_FFT // 2 + 1)])[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return torch.from_numpy(np.maximum(0, np.minimum(rising, falling)).astype(np.float32))


@cache
def _window() -> Tensor:
    return torch.hann_window(WINDOW, periodic=False, dtype=torch.float64).pow(0.85).float()


def log_mel(waveform: Tensor) -> Tensor:
    """Return the log mel powers (..., frames, mels) of a waveform (..., time) at 16 kHz, as Kaldi has them.

    There is a frame for every window that is whole.
    """
    frames = waveform.unfold(-1, WINDOW, HOP)
    frames = frames - frames.mean(-1, keepdim=True)
    before = torch.cat([frames[..., :1], frames[..., :-1]], -1)
    windows = (frames - PREEMPHASIS * before) * _window()
    power = torch.fft.rfft(windows, N_FFT).abs().square()
    return (power @ _filters()).clamp_min(_FLOOR).log()


def read_voice_network(path: Path) -> VoiceNetwork:
    """Read a network that `flasepformer.training.voices` has stored."""
    return with_weights(VoiceNetwork(), path)


@cache
def load_voice_network() -> VoiceNetwork:
    """Load the network of the package."""
    return packaged(VoiceNetwork(), WEIGHTS)


@torch.inference_mode()
def voice_of(samples: Samples) -> NDArray[np.float32]:
    """Return the voice (n_dims,) in samples (time,) of speech at 16 kHz, of length 1."""
    waveform = torch.from_numpy(np.ascontiguousarray(samples, np.float32))
    found: NDArray[np.float32] = load_voice_network()(waveform[None])[0].numpy()
    return found
