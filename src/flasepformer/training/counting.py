"""Train the network that counts who talks at a time (`flasepformer.conversation.counting`).

Usage: python -m flasepformer.training.counting SPEECH.csv OUT.safetensors [--noise FOLDER]

Conversations of one to four train talkers with 0 to 50 % overlap, a third of them with noise, separated by
the default model. Prints how many frames of the split `valid` are counted right.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from flasepformer.audio import read_audio, resample
from flasepformer.conversation.activity import filled, without_short
from flasepformer.conversation.counting import CONTEXT, SILENCE, CountNetwork, features, loud_power
from flasepformer.conversation.frames import frame_edges, in_db, smoothed, sweep
from flasepformer.conversation.mels import N_MELS
from flasepformer.data import SpeechStore, Utterance, plan_conversations, read_utterances
from flasepformer.data.acoustics import Noise, recordings_of
from flasepformer.inference import Separator
from flasepformer.inference.finishing import Passed, array_reader
from flasepformer.inference.levels import TalkingLevel
from flasepformer.training.optimizers import set_rate

RATE = 8000
OVERLAPS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
PEOPLE = (0.25, 0.35, 0.2, 0.2)
"""Shares of the recordings in which one to four talk."""
COLLAPSED = 0.15
"""Share of the examples whose tracks tell nothing: all is on one, as where a model hears one voice."""
NOISY = 0.33
CROP = 300
BATCH = 16


def talking_rms(waveform: NDArray[np.float32], rate: int = RATE) -> float:
    """Return how loud a waveform (time,) is without its pauses."""
    level = TalkingLevel(rate // 10)
    level.add(waveform)
    return level.rms()


def speaks(source: NDArray[np.float32], rate: int = RATE) -> NDArray[np.bool_]:
    """Return where a clean source speaks (frame,): to 35 dB below its loud frames, pauses of 0.3 s filled."""
    n = -(-len(source) * 50 // rate)
    edges = frame_edges(0, n, rate)
    lengths = np.diff(np.minimum(edges, len(source)))
    power = np.add.reduceat(np.square(source, dtype=np.float64), edges[:-1]) / lengths
    level = in_db(smoothed(power, 3))
    heard = level[level > -80]
    if not len(heard):
        return np.zeros(n, bool)
    return without_short(filled((level > max(np.percentile(heard, 95) - 35, -80)), 0.3), 0.1)


def recordings(
    speech: Path, split: str, count: int, noise: Path | None, seed: int
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Yield mixtures (time,) and sources (source, time)."""
    utterances = read_utterances(speech, split)
    talkers = sorted({utterance.speaker for utterance in utterances})
    rng = np.random.default_rng(seed)
    background = None
    if noise:
        background = Noise(
            SpeechStore.load([Utterance(path, "", 0.0) for path in recordings_of(noise)], RATE)
        )
    for number in range(count):
        seconds = float(rng.uniform(4, 60))
        overlap = float(rng.choice(OVERLAPS))
        n_people = min(1 + int(rng.choice(len(PEOPLE), p=PEOPLE)), len(talkers))
        n_drawn = max(n_people, 2)  # a monologue is what one of two says
        who = set(rng.choice(talkers, n_drawn, replace=False).tolist())  # of all, the groups are millions
        said_by = [utterance for utterance in utterances if utterance.speaker in who]
        plan = plan_conversations(
            said_by, 1, seed + number, n_sources=n_drawn, seconds=seconds, overlap=overlap
        )[0]
        sources = np.zeros((n_drawn, round(seconds * RATE)), np.float32)
        levels = 0.05 * 10 ** (rng.uniform(-5, 5, n_drawn) / 20)
        for turn in plan.turns:
            if n_people == 1 and turn.talker != plan.turns[0].talker:
                continue
            recording = read_audio(turn.utterance.path)
            said = resample(recording.samples.mean(0), recording.sample_rate, RATE)
            said = said * np.float32(levels[turn.talker] / max(talking_rms(said), 1e-9))
            first = round(turn.start_seconds * RATE)
            last = min(first + len(said), sources.shape[-1])
            sources[turn.talker, first:last] += said[: last - first]
        mixture = sources.sum(0)
        if background and rng.random() < NOISY:
            drawn = background.draw(rng, len(mixture))
            level = talking_rms(mixture) / max(float(np.sqrt(np.mean(drawn**2))), 1e-9)
            mixture = mixture + drawn * np.float32(level * 10 ** (-rng.uniform(10, 30) / 20))
        print(f"{split} {number + 1} of {count}", end="\r", flush=True)
        yield mixture, sources


def example(
    separator: Separator, mixture: NDArray[np.float32], sources: NDArray[np.float32]
) -> tuple[Tensor, Tensor]:
    """Return features (frames, n) and how many talk (frames,)."""
    estimates = separator.separate(mixture, RATE)
    passed = Passed(
        n_samples=len(mixture), sample_rate=RATE, recording=array_reader(mixture), offset=0.0,
        n_estimate_samples=len(mixture), estimate_rate=RATE, n_sources=len(estimates),
        mixture=array_reader(mixture), estimates=array_reader(estimates),
    )  # fmt: skip
    frames = sweep(passed)
    counted = np.stack([speaks(source) for source in sources]).sum(0).clip(max=2)
    return features(passed, frames, 0, len(frames), loud_power(frames)), torch.from_numpy(counted)


def train_counting(examples: Sequence[tuple[Tensor, Tensor]], steps: int, seed: int = 0) -> CountNetwork:
    """Train to say how many talk.

    Args:
        examples: Of recordings, features (frames, n) and how many talk (frames,).
        steps: How many batches.
        seed: Of the first weights and of the order.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = CountNetwork().train()
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=5e-2)
    weights = np.array([len(counted) for _, counted in examples], float)
    shown = 0.0
    for step in range(steps):
        share = step / steps
        set_rate(optimizer, 2e-3 * max(0.5 * (1 + math.cos(math.pi * share)), 0.01))
        inputs = torch.zeros(BATCH, CROP, examples[0][0].shape[-1])
        targets = torch.full((BATCH, CROP), -1)
        for row, pick in enumerate(rng.choice(len(examples), BATCH, p=weights / weights.sum())):
            feature, counted = examples[pick]
            start = int(rng.integers(max(len(counted) - CROP, 0) + 1))
            n = min(len(counted), CROP)
            inputs[row, :n] = feature[start : start + n]
            targets[row, :n] = counted[start : start + n]
        collapsed = torch.from_numpy(rng.random(BATCH) < COLLAPSED)
        inputs[collapsed, :, N_MELS : 2 * N_MELS] = inputs[collapsed, :, :N_MELS]
        inputs[collapsed, :, 2 * N_MELS :] = SILENCE
        # Other microphones and levels: a curve over the bands, the same for all three; and some noise.
        curve = 0.15 * torch.randn(BATCH, 1, 1) + 0.3 * torch.randn(BATCH, 1, 1) * torch.linspace(
            -1, 1, N_MELS
        )
        inputs = inputs + curve.repeat(1, 1, 3) + 0.1 * torch.randn_like(inputs)
        logits = network(inputs)[:, CONTEXT:-CONTEXT]
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1), targets[:, CONTEXT:-CONTEXT].flatten(), ignore_index=-1
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        shown = 0.98 * shown + 0.02 * loss.item()
        if step % 200 == 0:
            print(f"{share:4.0%} step {step}: loss {shown:.3f}", flush=True)
    return network.eval()


@torch.inference_mode()
def confusion(network: CountNetwork, examples: Sequence[tuple[Tensor, Tensor]]) -> NDArray[np.int64]:
    """Return frames (3, 3) by how many talked and how many were counted."""
    table = np.zeros((3, 3), np.int64)
    for feature, counted in examples:
        np.add.at(table, (counted.numpy(), network(feature[None])[0].argmax(-1).numpy()), 1)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, store and score."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("speech", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--noise", type=Path)
    parser.add_argument("--conversations", type=int, default=300)
    parser.add_argument("--steps", type=int, default=2400, help="of training")
    options = parser.parse_args(arguments)
    separator = Separator.from_pretrained(device="cpu", post_filter=0.0)
    trained, valid = (
        [example(separator, *made) for made in recordings(options.speech, split, count, options.noise, seed)]
        for split, count, seed in (("train", options.conversations, 1), ("valid", 24, 2))
    )
    network = train_counting(trained, options.steps)
    save_file({name: value.half().contiguous() for name, value in network.state_dict().items()}, options.out)
    print(confusion(network, valid))


if __name__ == "__main__":
    main()
