"""Make the package's network of voices (`flasepformer.conversation.voice`) of the weights that are published.

Usage: python -m flasepformer.training.voices PUBLISHED.pt OUT.safetensors [SPEECH.csv]

PUBLISHED is `campplus_cn_en_common.pt` of 3D-Speaker, the CAM++ for Mandarin and English:
https://modelscope.cn/models/iic/speech_campplus_sv_zh_en_16k-common_advanced (Apache License 2.0).

With SPEECH, prints the equal error rate on the talkers of the split `test`, for utterances cut to 2 and to 4
seconds, of the whole band and of what is left below 4 kHz.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from flasepformer.audio import resample
from flasepformer.conversation.voice import BLOCKS, SAMPLE_RATE, VoiceNetwork, read_voice_network
from flasepformer.data import SpeechStore, read_utterances
from flasepformer.data.manifest import Utterance

NORM_EPS = 1e-5
BATCH = 16
NARROW_RATE = 8000
"""Of estimates of the default model, which have nothing above half of it."""

Voices = NDArray[np.float32]


def from_published(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of `VoiceNetwork`: those of 3D-Speaker's CAM++, its norms made part of its layers.

    Raises:
        KeyError: They are of another network.
    """
    found: dict[str, Tensor] = {}

    def norm(name: str) -> tuple[Tensor, Tensor]:
        scale = torch.rsqrt(published[name + ".running_var"] + NORM_EPS)
        shift = -published[name + ".running_mean"] * scale
        if name + ".weight" not in published:
            return scale, shift
        weight, bias = published[name + ".weight"], published[name + ".bias"]
        return scale * weight, shift * weight + bias

    def convolution(ours: str, theirs: str, norm_of_it: str = "") -> None:
        for part in ("weight", "bias"):
            if f"{theirs}.{part}" in published:
                found[f"{ours}.{part}"] = published[f"{theirs}.{part}"]
        if norm_of_it:
            scale, found[ours + ".bias"] = norm(norm_of_it)
            weight = found[ours + ".weight"]
            found[ours + ".weight"] = weight * scale.view(-1, *[1] * (weight.ndim - 1))

    def rise(ours: str, theirs: str) -> None:
        scale, shift = norm(theirs)
        found[ours + ".weight"], found[ours + ".bias"] = scale[:, None], shift[:, None]

    convolution("enter", "head.conv1", "head.bn1")
    for k in range(4):
        ours, theirs = f"residuals.{k}.", f"head.layer{k // 2 + 1}.{k % 2}."
        convolution(ours + "first", theirs + "conv1", theirs + "bn1")
        convolution(ours + "second", theirs + "conv2", theirs + "bn2")
        if k % 2 == 0:
            convolution(ours + "beside", theirs + "shortcut.0", theirs + "shortcut.1")
    convolution("lower", "head.conv2", "head.bn2")
    convolution("flatten", "xvector.tdnn.linear", "xvector.tdnn.nonlinear.batchnorm")
    for k, (n_layers, _) in enumerate(BLOCKS):
        for layer in range(n_layers):
            ours, theirs = f"blocks.{k}.layers.{layer}.", f"xvector.block{k + 1}.tdnnd{layer + 1}."
            rise(ours + "rise", theirs + "nonlinear1.batchnorm")
            convolution(ours + "enter", theirs + "linear1", theirs + "nonlinear2.batchnorm")
            convolution(ours + "local", theirs + "cam_layer.linear_local")
            convolution(ours + "around", theirs + "cam_layer.linear1")
            convolution(ours + "gate", theirs + "cam_layer.linear2")
        rise(f"blocks.{k}.rise", f"xvector.transit{k + 1}.nonlinear.batchnorm")
        convolution(f"blocks.{k}.leave", f"xvector.transit{k + 1}.linear")
    rise("leave", "xvector.out_nonlinear.batchnorm")
    convolution("project", "xvector.dense.linear", "xvector.dense.nonlinear.batchnorm")
    found["project.weight"] = found["project.weight"][..., 0]
    return found


class Pieces:
    """Utterances cut into pieces of one length.

    Args:
        utterances: To cut.
        seconds: Length of each piece.
        most: Seconds of a talker, from the first; the rest is left out.
    """

    def __init__(self, utterances: Sequence[Utterance], seconds: float, most: float = float("inf")) -> None:
        self._store = SpeechStore.load(_some_of_each(utterances, most), SAMPLE_RATE, n_threads=1)
        self._length = round(seconds * SAMPLE_RATE)
        self._places = [
            (i, first)
            for i in range(len(self._store))
            for first in range(0, len(self._store.waveform(i)) - self._length + 1, self._length)
        ]
        self.sources = [i for i, _ in self._places]
        """Of which utterance each is."""
        self.talkers = [self._store.utterances[i].speaker for i in self.sources]

    def __len__(self) -> int:
        return len(self._places)

    def samples(self, *, narrow: bool = False) -> Iterator[NDArray[np.float32]]:
        """Yield the samples (piece, time) of some pieces at a time, without what is above 4 kHz if narrow."""
        for begin in range(0, len(self), BATCH):
            pieces = np.stack(
                [
                    np.asarray(self._store.waveform(i)[first : first + self._length], np.float32)
                    for i, first in self._places[begin : begin + BATCH]
                ]
            )
            if narrow:
                pieces = resample(resample(pieces, SAMPLE_RATE, NARROW_RATE), NARROW_RATE, SAMPLE_RATE)
            yield pieces

    def voices(self, network: VoiceNetwork, *, narrow: bool = False) -> Voices:
        """Return the voices (piece, n_dims)."""
        with torch.inference_mode():
            found = [network(torch.from_numpy(pieces)) for pieces in self.samples(narrow=narrow)]
        return torch.cat(found).numpy()


def _some_of_each(utterances: Sequence[Utterance], seconds: float) -> list[Utterance]:
    """Return the first utterances of every talker until they last so long."""
    taken: dict[str, float] = {}
    kept = []
    for utterance in utterances:
        if taken.get(utterance.speaker, 0.0) < seconds:
            taken[utterance.speaker] = taken.get(utterance.speaker, 0.0) + utterance.duration_seconds
            kept.append(utterance)
    return kept


def equal_error_rate(same: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Return the rate at which as many pairs of one voice are told apart as pairs of two are not.

    >>> round(equal_error_rate(np.array([0.9, 0.8, 0.2]), np.array([0.1, 0.3, 0.0])), 3)
    0.333
    """
    thresholds = np.sort(np.concatenate([same, other]))
    missed = np.searchsorted(np.sort(same), thresholds) / len(same)
    taken = 1 - np.searchsorted(np.sort(other), thresholds) / len(other)
    at = np.abs(missed - taken).argmin()
    return float((missed[at] + taken[at]) / 2)


def error_rate_of(scores: NDArray[np.floating], talkers: Sequence[str], sources: Sequence[int]) -> float:
    """Return the equal error rate of the scores of all pairs of pieces (piece, piece) from two utterances."""
    names, files = np.array(talkers), np.array(sources)
    pairs = np.triu(np.ones(scores.shape, bool), 1) & (files[:, None] != files[None])
    same = names[:, None] == names[None]
    return equal_error_rate(scores[pairs & same], scores[pairs & ~same])


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert, store and score."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("published", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("speech", type=Path, nargs="?")
    options = parser.parse_args(arguments)
    weights = from_published(torch.load(options.published, map_location="cpu", weights_only=True))
    save_file({name: value.half().contiguous() for name, value in weights.items()}, options.out)
    if options.speech is None:
        return
    network = read_voice_network(options.out)
    for seconds in (2.0, 4.0):
        pieces = Pieces(read_utterances(options.speech, "test"), seconds)
        if not len(pieces):
            print(f"test, {seconds:g} s: no utterance is as long", flush=True)
            continue
        found = (pieces.voices(network), pieces.voices(network, narrow=True))
        wide, narrow = (error_rate_of(v @ v.T, pieces.talkers, pieces.sources) for v in found)
        print(f"test, {seconds:g} s: equal error rate {wide:.1%}, below 4 kHz {narrow:.1%}", flush=True)


if __name__ == "__main__":
    main()
