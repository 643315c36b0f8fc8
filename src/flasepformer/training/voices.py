"""Train the network that tells voices apart (`flasepformer.conversation.voice`) on speech of many talkers.

Usage: python -m flasepformer.training.voices SPEECH.csv OUT.safetensors [--steps 3000] [--start OLD]

What is no property of a voice changes: microphone, band, room, noise, and remains of another talker.

Prints the equal error rate on the talkers of the split `test`, for utterances cut to 2 and to 4 seconds.
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from flasepformer.conversation.frames import FRAME_SECONDS
from flasepformer.conversation.mels import SAMPLE_RATE, log_mel
from flasepformer.conversation.voice import VoiceNetwork, read_voice_network
from flasepformer.data import SpeechStore, read_utterances
from flasepformer.data.manifest import Utterance
from flasepformer.training.optimizers import Muon, set_rate
from flasepformer.training.precision import resolve_precision

SCALE, MARGIN = 30.0, 0.2
"""Of the additive angular margin (Deng et al., "ArcFace", CVPR 2019)."""
BATCH = 128
RISE = 0.1
"""Share of the training in which the learning rate rises; a fifth of it for a network that goes on."""
PEAK_RATE = 4e-3
WEIGHT_DECAY = 2e-2
CROP_FRAMES = (40, 150)


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
    mels: Sequence[NDArray[np.float16]],
    talkers: Sequence[str],
    steps: int,
    seed: int = 0,
    network: VoiceNetwork | None = None,
) -> VoiceNetwork:
    """Train with the margin of angles between voices.

    Args:
        mels: Log mel powers (frames, mels) of utterances.
        talkers: Who says each of them.
        steps: How many batches.
        seed: Of the first weights and of the order.
        network: What to go on with; a new one by default.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    indices = defaultdict[str, list[int]](list)
    for i, name in enumerate(talkers):
        indices[name].append(i)
    by_talker = [indices[name] for name in sorted(indices)]
    n_talkers = len(by_talker)
    precision, _ = resolve_precision("auto", torch.device("cpu"))

    def crops_by(who: NDArray[np.intp], n_frames: int) -> Tensor:
        return torch.from_numpy(
            np.stack([crop(mels[rng.choice(by_talker[w])], n_frames, rng) for w in who.tolist()])
        )

    if network is None:
        network, peak, rise = VoiceNetwork(), PEAK_RATE, RISE
        centres = torch.randn(n_talkers, network.project.out_features)
    else:  # its voices of everybody are where the centres begin
        peak, rise = PEAK_RATE / 2, RISE / 5
        with torch.inference_mode():
            parts = np.array_split(np.arange(n_talkers), -(-n_talkers // BATCH))
            centres = torch.cat([network(crops_by(part, CROP_FRAMES[1])) for part in parts])
    centres = nn.Parameter(F.normalize(centres.clone(), dim=-1))
    network.train()
    kernels = [p for p in network.parameters() if p.ndim > 1]
    matrices = [nn.Parameter(p.detach().flatten(1)) for p in kernels]  # the same memory
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    optimizers = (
        Muon(matrices, peak, WEIGHT_DECAY, dtype),
        torch.optim.AdamW(
            [*(p for p in network.parameters() if p.ndim == 1), centres], peak, weight_decay=WEIGHT_DECAY
        ),
    )
    shown = 0.0
    for step in range(steps):
        share = step / steps
        for optimizer in optimizers:
            set_rate(optimizer, max(peak * _rate_at(share, rise), 1e-5))
        who = rng.choice(n_talkers, min(BATCH, n_talkers), replace=False)
        n_frames = int(rng.integers(*CROP_FRAMES))
        batch = varied(crops_by(who, n_frames), rng)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            found = network(batch).float()
        loss = _margin_loss(found @ F.normalize(centres, dim=-1).mT, torch.from_numpy(who), share)
        network.zero_grad()
        centres.grad = None
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        for matrix, kernel in zip(matrices, kernels, strict=True):
            assert kernel.grad is not None
            matrix.grad = kernel.grad.flatten(1)
        for optimizer in optimizers:
            optimizer.step()
        shown = 0.98 * shown + 0.02 * loss.item()
        if step % 100 == 0:
            print(f"{share:4.0%} step {step}: loss {shown:.2f}", flush=True)
    return network.eval()


def _rate_at(share: float, rise: float) -> float:
    """Return the learning rate after a share of the training, the highest being 1."""
    if share < rise:
        return share / rise
    return 0.5 * (1 + math.cos(math.pi * (share - rise) / (1 - rise)))


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
    """Change what is no property of a voice: microphone, band, room, noise, and remains of another talker."""
    n, _, n_mels = batch.shape
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, 1, 1, generator=generator)

    def some(share: float) -> Tensor:
        return uniform(0, 1) < share

    place = torch.linspace(0, 1, n_mels)

    def curve(most: float) -> Tensor:
        return sum(
            (uniform(-most, most) * torch.cos(torch.pi * k * place + uniform(0, 6.28)) for k in (1, 2, 3)),
            start=torch.zeros(n, 1, n_mels),
        )

    power = batch.exp()
    power = torch.where(some(0.15), in_a_room(power, uniform(0.2, 0.8), uniform(-0.7, 2.8).exp()), power)
    level = power.mean((1, 2), keepdim=True)
    other = power.roll(1, 0) * level / level.roll(1, 0) * (-uniform(2.3, 9.2)).exp()  # 10 to 40 dB below
    noise = level * (curve(1.2) - uniform(3.0, 11.5)).exp()
    noise = noise * torch.empty(batch.shape).exponential_(generator=generator)
    mixed = (power + other * some(0.4) + noise * some(0.5)).log()
    outside = (place < uniform(-0.3, 0.15)) | (place > uniform(0.85, 1.4))  # of the band of a telephone
    return mixed + curve(0.6) - uniform(1.0, 6.0) * (some(0.15) & outside)


def in_a_room(power: Tensor, seconds: Tensor, direct: Tensor) -> Tensor:
    """Let powers (batch, frames, mels) die away, as they do in a room.

    Args:
        power: Of what is said.
        seconds: Until 60 dB are gone (batch, 1, 1).
        direct: How many times as much comes straight as from the walls (batch, 1, 1).
    """
    lags = (torch.arange(power.shape[1])[:, None] - torch.arange(power.shape[1])) * FRAME_SECONDS
    decay = torch.where(lags > 0, torch.exp(-math.log(1e6) * lags.clamp_min(0) / seconds), 0.0)
    whole = 1 / torch.expm1(math.log(1e6) * FRAME_SECONDS / seconds)
    return power + decay / (direct * whole) @ power


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
    parser.add_argument("--steps", type=int, default=3000, help="of training, each of 128 utterances")
    parser.add_argument("--seconds-each", type=float, default=240.0, help="of speech of every talker")
    parser.add_argument("--start", type=Path, help="weights to go on with")
    options = parser.parse_args(arguments)
    mels, talkers = mels_of(some_of_each(read_utterances(options.speech, "train"), options.seconds_each))
    print(
        f"{len(mels)} utterances of {len(set(talkers))} talkers, {sum(map(len, mels)) / 180000:.1f} h",
        flush=True,
    )
    start = read_voice_network(options.start) if options.start else None
    network = train_voices(mels, talkers, options.steps, network=start)
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
