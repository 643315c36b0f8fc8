"""Train the network that tells voices apart (`flasepformer.conversation.voice`) on speech of many talkers.

Usage: python -m flasepformer.training.voices SPEECH.csv OUT.safetensors [--minutes 10] [--seconds-each 30]

Prints the equal error rate on the talkers of the split `test`, for utterances cut to 2 and to 4 seconds.
"""

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from flasepformer.conversation.mels import SAMPLE_RATE, log_mel
from flasepformer.conversation.voice import VoiceNetwork
from flasepformer.data import SpeechStore, read_utterances
from flasepformer.data.manifest import Utterance
from flasepformer.training.optimizers import set_rate

SCALE, MARGIN = 30.0, 0.2
"""Of the additive angular margin (Deng et al., "ArcFace", CVPR 2019)."""
BATCH = 128
RISE = 0.25
"""Share of the training in which the learning rate rises."""
PEAK_RATE = 4e-3


def some_of_each(utterances: Sequence[Utterance], seconds: float) -> list[Utterance]:
    """Return the first utterances of every talker until they last so long."""
    taken: dict[str, float] = {}
    kept = []
    for utterance in utterances:
        if taken.get(utterance.speaker, 0.0) < seconds:
            taken[utterance.speaker] = taken.get(utterance.speaker, 0.0) + utterance.duration_seconds
            kept.append(utterance)
    return kept


def train_voices(
    mels: Sequence[NDArray[np.float16]], talkers: Sequence[str], minutes: float, seed: int = 0
) -> VoiceNetwork:
    """Train for so much time of the processor.

    Args:
        mels: Log mel powers (frames, mels) of utterances.
        talkers: Who says each of them.
        minutes: On the clock of the processor, so that another run gives other, like weights.
        seed: Of the first weights and of the order.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    names = sorted(set(talkers))
    by_talker = [[i for i, name in enumerate(talkers) if name == own] for own in names]
    network = VoiceNetwork().train()
    centres = nn.Parameter(F.normalize(torch.randn(len(names), network.project.out_features), dim=-1))
    optimizer = torch.optim.AdamW([*network.parameters(), centres], PEAK_RATE, weight_decay=2e-2)
    began, step, shown = time.process_time(), 0, 0.0
    while (share := (time.process_time() - began) / (60 * minutes)) < 1:
        set_rate(optimizer, max(_rate_at(share), 1e-5))
        who = rng.choice(len(names), min(BATCH, len(names)), replace=False)
        n_frames = int(rng.integers(60, 160))
        crops = [crop(mels[rng.choice(by_talker[w])], n_frames, rng) for w in who]
        batch = varied(torch.from_numpy(np.stack(crops)), rng)
        loss = _margin_loss(network(batch) @ F.normalize(centres, dim=-1).mT, torch.from_numpy(who), share)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        step, shown = step + 1, 0.98 * shown + 0.02 * loss.item()
        if step % 50 == 0:
            print(f"{share:4.0%} step {step}: loss {shown:.2f}", flush=True)
    return network.eval()


def _rate_at(share: float) -> float:
    """Return the learning rate after a share of the training."""
    if share < RISE:
        return PEAK_RATE * share / RISE
    return PEAK_RATE * 0.5 * (1 + math.cos(math.pi * (share - RISE) / (1 - RISE)))


def _margin_loss(cosine: Tensor, own: Tensor, share: float) -> Tensor:
    """Return the loss of cosines (voice, talker), whose margin grows over the first third of the training."""
    angle = cosine.gather(1, own[:, None]).clamp(-1 + 1e-6, 1 - 1e-6).arccos()
    margin = MARGIN * min(1.0, share / 0.3)
    return F.cross_entropy(SCALE * cosine.scatter(1, own[:, None], (angle + margin).cos()), own)


def mels_of(utterances: Sequence[Utterance]) -> tuple[list[NDArray[np.float16]], list[str]]:
    """Return the log mel powers of utterances and their talkers."""
    store = SpeechStore.load(utterances, SAMPLE_RATE, n_threads=1)
    mels = [
        log_mel(store.waveform(i) * np.float32(0.1)).numpy().astype(np.float16) for i in range(len(store))
    ]
    return mels, [utterance.speaker for utterance in store.utterances]


def crop(mels: NDArray[np.float16], n_frames: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Cut some frames out, of a short utterance repeated."""
    if len(mels) < n_frames:
        mels = np.tile(mels, (-(-n_frames // len(mels)), 1))
    start = rng.integers(len(mels) - n_frames + 1)
    return mels[start : start + n_frames].astype(np.float32)


def varied(batch: Tensor, rng: np.random.Generator) -> Tensor:
    """Change what is no property of a voice: microphone, noise, and remains of another talker."""
    n, _, n_mels = batch.shape
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, 1, 1, generator=generator)

    level = batch.exp().mean((1, 2), keepdim=True).log()
    other = batch.roll(1, 0) - level.roll(1, 0) + level - uniform(2.3, 9.2)  # 10 to 40 dB below
    noise = level - uniform(3.5, 11.5) + torch.randn(batch.shape, generator=generator)
    mixed = torch.logaddexp(batch, torch.where(uniform(0, 1) < 0.5, other, -25.0))
    mixed = torch.logaddexp(mixed, torch.where(uniform(0, 1) < 0.5, noise, -25.0))
    place = torch.linspace(0, 1, n_mels)
    for k in (1, 2, 3):
        mixed = mixed + uniform(-0.6, 0.6) * torch.cos(torch.pi * k * place + uniform(0, 6.28))
    return mixed


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


def error_rate_of(voices: NDArray[np.floating], talkers: Sequence[str], sources: Sequence[int]) -> float:
    """Return the equal error rate of all pairs of crops from different utterances."""
    scores = voices @ voices.T
    names = np.array(talkers)
    pairs = np.triu(np.ones(scores.shape, bool), 1) & (np.array(sources)[:, None] != np.array(sources)[None])
    same = names[:, None] == names[None]
    return equal_error_rate(scores[pairs & same], scores[pairs & ~same])


def crops_of(
    mels: Sequence[NDArray[np.float16]], talkers: Sequence[str], seconds: float
) -> tuple[list[NDArray[np.float32]], list[str], list[int]]:
    """Cut every utterance into pieces of so many seconds."""
    n = round(50 * seconds)
    pieces, names, sources = [], [], []
    for i, (mel, talker) in enumerate(zip(mels, talkers, strict=True)):
        for start in range(0, len(mel) - n + 1, n):
            pieces.append(mel[start : start + n].astype(np.float32))
            names.append(talker)
            sources.append(i)
    return pieces, names, sources


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, store and score."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("speech", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0, help="of the processor")
    parser.add_argument("--seconds-each", type=float, default=30.0, help="of speech of every talker")
    options = parser.parse_args(arguments)
    mels, talkers = mels_of(some_of_each(read_utterances(options.speech, "train"), options.seconds_each))
    print(
        f"{len(mels)} utterances of {len(set(talkers))} talkers, {sum(map(len, mels)) / 180000:.1f} h",
        flush=True,
    )
    network = train_voices(mels, talkers, options.minutes)
    weights = {
        name: value.half().contiguous()
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    save_file(weights, options.out)
    tested, test_talkers = mels_of(read_utterances(options.speech, "test"))
    for seconds in (2.0, 4.0):
        pieces, names, sources = crops_of(tested, test_talkers, seconds)
        if not pieces:
            print(f"test, {seconds:g} s: no utterance is as long", flush=True)
            continue
        with torch.inference_mode():
            voices = np.concatenate([network(torch.from_numpy(p)[None]).numpy() for p in pieces])
        print(
            f"test, {seconds:g} s: equal error rate {error_rate_of(voices, names, sources):.1%}", flush=True
        )


if __name__ == "__main__":
    main()
