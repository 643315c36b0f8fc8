"""Train the network that filters what the default model estimates (`flasepformer.models.filter_network`).

Usage: python -m flasepformer.training.filtering RECIPE.yaml OUT.safetensors --examples FOLDER

Mixtures of the recipe and the estimates of the default model are made once and kept in the folder; a run that
was interrupted goes on with what is there. Prints SI-SNR of the split `valid` before and behind the filter.
"""

import argparse
import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from flasepformer.data import Examples
from flasepformer.inference import Separator
from flasepformer.inference.post_filter import HOP_SECONDS
from flasepformer.metrics import si_snr
from flasepformer.models.filter_network import FilterNetwork
from flasepformer.training.examples import open_examples, take_example
from flasepformer.training.losses import softly_limited
from flasepformer.training.optimizers import Muon, set_rate
from flasepformer.training.recipe import load_recipe

RATE = 8000
HOP = round(HOP_SECONDS * RATE)
WINDOW = 4 * HOP
LIMIT_DB = 30.0
"""What SI-SNR approaches in the loss and never exceeds."""
LEVEL_WEIGHT = 0.02
"""Of the square in dB by which a track is louder or softer than its talker: SI-SNR does not tell."""
LEARNING_RATE = 1.5e-3
MUON_RATE = 3.0
"""Times the learning rate, for matrices."""
BATCH = 4
SHARD = 100
"""Mixtures in a file of examples."""
SECONDS = 4.0


@dataclass(frozen=True)
class Separated:
    """Mixtures that a model has separated."""

    mixtures: Tensor
    """(example, time)."""
    estimates: Tensor
    """(example, source, time)."""
    sources: Tensor
    """The same shape, in the order of the estimates."""
    wanted: Tensor
    """(example, source): whether the loss counts it: what is silent or was mistaken tells nothing."""

    def __len__(self) -> int:
        return len(self.mixtures)

    def __getitem__(self, index: slice | Tensor) -> "Separated":
        return Separated(*(getattr(self, field.name)[index] for field in dataclasses.fields(self)))


def in_order(mixtures: Tensor, estimates: Tensor, sources: Tensor) -> Separated:
    """Bring two sources in the order of their estimates, and leave out mixtures in which none is wanted."""
    kept, changed = si_snr(estimates, sources), si_snr(estimates, sources.flip(1))
    swapped = changed.mean(1) > kept.mean(1)
    sources = torch.where(swapped[:, None, None], sources.flip(1), sources)
    wanted = (torch.where(swapped[:, None], changed, kept) > 0) & (sources.square().mean(-1) > 1e-7)
    return Separated(mixtures, estimates, sources, wanted)[wanted.any(1)]


def separated(separator: Separator, examples: Examples, n_examples: int, folder: Path) -> Separated:
    """Separate mixtures that a recipe makes, those that are not in the folder yet."""
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[Mapping[str, Tensor]] = []
    for first in range(0, n_examples, SHARD):
        path = folder / f"{first:06d}.safetensors"
        if not path.exists():
            made: dict[str, list[Tensor]] = {"mixtures": [], "estimates": [], "sources": []}
            for index in range(first, min(first + SHARD, n_examples)):
                mixture, sources = take_example(examples, index)
                made["mixtures"].append(mixture)
                made["estimates"].append(torch.from_numpy(separator.separate(mixture.numpy(), RATE)))
                made["sources"].append(sources)
            waiting = path.with_suffix(".part")
            save_file({name: torch.stack(signals) for name, signals in made.items()}, waiting)
            waiting.rename(path)
            print(f"{min(first + SHARD, n_examples)} of {n_examples} mixtures", end="\r", flush=True)
        parts.append(load_file(path))
    names = ("mixtures", "estimates", "sources")
    return in_order(*(torch.cat([part[name] for part in parts]) for name in names))


def filtered(network: FilterNetwork, mixtures: Tensor, estimates: Tensor) -> Tensor:
    """Filter whole estimates (batch, source, time), the same as `PostFiltered` does in pieces."""
    level = mixtures.square().mean(-1).sqrt().clamp_min(1e-6)[:, None]
    n_sources, n_samples = estimates.shape[1:]
    whole = spectra(mixtures / level).unsqueeze(1).expand(-1, n_sources, -1, -1)
    parts = spectra(estimates / level[..., None])
    others = parts.sum(1, keepdim=True) - parts
    found = network(*(x.flatten(0, 1) for x in (whole, parts, others))).unflatten(0, (-1, n_sources))
    return waveforms(found, n_samples) * level[..., None]


def spectra(signals: Tensor) -> Tensor:
    """Return (..., frame, bin) of signals (..., time)."""
    margin = WINDOW - HOP
    padded = F.pad(signals.flatten(0, -2), (margin, margin + -signals.shape[-1] % HOP))
    window = torch.hann_window(WINDOW)
    found = torch.stft(padded, WINDOW, HOP, window=window, center=False, return_complex=True)
    return found.mT.unflatten(0, signals.shape[:-1])


def waveforms(found: Tensor, n_samples: int) -> Tensor:
    """Return the signals (..., time) of spectra (..., frame, bin)."""
    windows = torch.fft.irfft(found.flatten(0, -3), WINDOW) * (torch.hann_window(WINDOW) / 1.5)
    length = (found.shape[-2] - 1) * HOP + WINDOW
    added = F.fold(windows.mT, (1, length), (1, WINDOW), stride=(1, HOP))[:, 0, 0]
    return added[:, WINDOW - HOP :][:, :n_samples].unflatten(0, found.shape[:-2])


def loss_of(estimates: Tensor, examples: Separated) -> Tensor:
    """Return minus the mean SI-SNR in dB of what is wanted, softly limited."""
    scores = softly_limited(si_snr(estimates, examples.sources), LIMIT_DB)
    return -scores[examples.wanted].mean()


def levels(estimates: Tensor, examples: Separated) -> Tensor:
    """Return in dB by how much what is wanted is louder in its track than in the mixture."""
    sources = examples.sources
    share = (estimates * sources).sum(-1) / (sources.square().sum(-1) + 1e-9)
    return 10 * (share.square() + 1e-4).log10()[examples.wanted]


def grown(network: FilterNetwork, weights: Mapping[str, Tensor]) -> FilterNetwork:
    """Give a network the weights of one with fewer channels or blocks, as whose copy it begins.

    What was does not hear channels that are new, and new blocks add nothing yet.
    """
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name not in weights:
                continue
            known = weights[name].float()
            corner = tuple(slice(n) for n in known.shape)
            if known.shape != weight.shape and weight.ndim > 1 and not name.startswith(("enter", "where")):
                weight[: known.shape[0]] = 0
                if name.endswith("out.weight"):
                    weight.zero_()
            weight[corner] = known
    return network


def train_filter(
    network: FilterNetwork,
    examples: Separated,
    n_steps: int,
    seed: int = 0,
    learning_rate: float = LEARNING_RATE,
) -> Iterator[tuple[int, float, FilterNetwork]]:
    """Train, at a constant rate for two fifths of the steps, which then falls to nothing.

    Yields:
        After every step its number, what the filter brings in dB in the running mean, and the network whose
        weights are the running average: the one to keep.
    """
    rng, order = np.random.default_rng(seed), np.zeros(0, np.int64)
    matrices = [weight for name, weight in network.named_parameters() if weight.ndim > 1 and name != "where"]
    flat = [nn.Parameter(weight.detach().flatten(1)) for weight in matrices]  # share their memory
    others = [weight for name, weight in network.named_parameters() if weight.ndim == 1 or name == "where"]
    muon = Muon(flat, learning_rate, weight_decay=1e-2, dtype=torch.float32)
    rest = torch.optim.AdamW(others, learning_rate, weight_decay=1e-2)
    averaged, gain = copy.deepcopy(network), 0.0
    for step in range(1, n_steps + 1):
        falling = max(min(1.0, (1 - step / n_steps) / 0.6), 0.01)
        rate = learning_rate * min(step / 50, falling)
        set_rate(muon, MUON_RATE * rate)
        set_rate(rest, rate)
        if len(order) < BATCH:
            order = np.concatenate([order, rng.permutation(len(examples))])
        batch, order = examples[torch.from_numpy(order[:BATCH])], order[BATCH:]
        found = filtered(network, batch.mixtures, batch.estimates)
        loss = loss_of(found, batch)
        network.zero_grad()
        (loss + LEVEL_WEIGHT * levels(found, batch).square().mean()).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for view, weight in zip(flat, matrices, strict=True):
            assert weight.grad is not None
            view.grad = weight.grad.flatten(1)
        muon.step()
        rest.step()
        with torch.no_grad():
            gain += max(0.01, 1 / step) * ((loss_of(batch.estimates, batch) - loss).item() - gain)
            for mean, weight in zip(averaged.parameters(), network.parameters(), strict=True):
                mean.lerp_(weight, 1 - min(0.998, step / (step + 20)))
        yield step, gain, averaged


@torch.inference_mode()
def score(examples: Separated, network: FilterNetwork | None = None) -> float:
    """Return the mean SI-SNR in dB of the estimates, or of what a network makes of them."""
    scores = []
    for first in range(0, len(examples), 10):
        part = examples[slice(first, first + 10)]
        found = part.estimates if network is None else filtered(network, part.mixtures, part.estimates)
        scores.append(si_snr(found, part.sources)[part.wanted])
    return torch.cat(scores).mean().item()


def main(arguments: Sequence[str] | None = None) -> None:
    """Separate, train, store and score."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--examples", type=Path, required=True, help="folder to keep them in")
    parser.add_argument("--cache", type=Path, default=Path("runs/speech-cache"), help="of decoded speech")
    parser.add_argument("--mixtures", type=int, default=6000)
    parser.add_argument("--valid-mixtures", type=int, default=100)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--grow", type=Path, help="begin with these weights, also of a smaller network")
    options = parser.parse_args(arguments)
    recipe = load_recipe(options.recipe)
    recipe = dataclasses.replace(
        recipe,
        mixing=dataclasses.replace(
            recipe.mixing,
            segment_seconds=SECONDS,
            conversation_probability=0.1,
            room_probability=0.2,
            noise_probability=0.35,
        ),
        data=dataclasses.replace(recipe.data, valid_segment_seconds=SECONDS),
    )
    separator = Separator.from_pretrained(device="cpu", mode="whole", post_filter=0.0)
    train, valid = open_examples(recipe, options.cache)
    examples, unseen = (
        separated(separator, made, n, options.examples / name)
        for name, made, n in (("train", train, options.mixtures), ("valid", valid, options.valid_mixtures))
    )
    torch.manual_seed(0)
    network = FilterNetwork() if options.grow is None else grown(FilterNetwork(), load_file(options.grow))
    print(f"valid {score(unseen):.3f} dB, filtered {score(unseen, network):.3f} dB")
    for step, gain, averaged in train_filter(network, examples, options.steps):
        if step % 250 == 0 or step == options.steps:
            print(f"step {step}: gain {gain:.3f} dB, valid {score(unseen, averaged):.3f} dB", flush=True)
            weights = {name: value.half().contiguous() for name, value in averaged.state_dict().items()}
            save_file(weights, options.out)


if __name__ == "__main__":
    main()
