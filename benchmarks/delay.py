"""Quality of live separation against its delay, one row for each way of following.

Usage: python benchmarks/delay.py --speech MANIFEST.csv [--out delay.csv] [--picture delay.png]
           [--mixtures 50] [--conversations 10] [--ways MODEL[:delay=0.5[,hop=0.25][,window=4][,sums=no]] ...]

A way is a model and how it follows; a model alone hears everything, or is played live if it is causal. CPU
time of this process over the length of the recordings is the real-time factor.
"""

import argparse
import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flasepformer.data import DynamicMixing, DynamicMixingConfig, SpeechStore, TurnTaking, read_utterances
from flasepformer.inference.engines import CausalEngine, FollowingEngine
from flasepformer.inference.levels import MODEL_RMS
from flasepformer.metrics import best_permutation, pairwise, si_snr, wrong_turns
from flasepformer.models import load_model

WAYS = [
    "default", "default-live", *(f"default:delay={delay}" for delay in (0.2, 0.25, 0.5, 1.0, 2.0)), 
    "default:delay=0.5,sums=no",
    "default:delay=0.5,hop=0.128", "default:delay=0.5,hop=0.384", "default:delay=0.5,window=8",
    "default:delay=0.5,window=2",
]  # fmt: skip


def separate(model: Any, options: dict[str, str], mixture: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the tracks (source, time) as they would have been heard, and the delay in seconds."""
    device = torch.device("cpu")
    engine: Any
    if model.causal:
        engine = CausalEngine(model, device)
    elif "delay" in options:
        engine = FollowingEngine(
            model,
            device,
            delay_seconds=float(options["delay"]),
            window_seconds=float(options.get("window", 4)),
            hop_seconds=float(options["hop"]) if "hop" in options else None,
            keeps_sums=options.get("sums") != "no",
        )
    else:
        level = np.sqrt(np.mean(mixture**2)) / MODEL_RMS
        return model(torch.from_numpy(mixture / level)[None])[0].numpy() * level, float("nan")
    engine.push(mixture)
    while engine.ready:
        engine.advance([engine])
    return engine.finish(), engine.delay / model.sample_rate


def main(arguments: Sequence[str] | None = None) -> None:
    """Print and write a row for each way as soon as it is known."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--mixtures", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=8.0, help="of a mixture")
    parser.add_argument("--conversations", type=int, default=10)
    parser.add_argument("--ways", nargs="+", default=WAYS)
    parser.add_argument("--bf16", action="store_true", help="matrix products in bfloat16")
    parser.add_argument("--out", type=Path, default=Path("delay.csv"))
    parser.add_argument("--picture", type=Path, help="of quality against delay")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    store = SpeechStore.load(read_utterances(options.speech, options.split), 8000)
    mixing = DynamicMixingConfig(segment_seconds=options.seconds, min_filled=0.8, speed_range=(1.0, 1.0))
    examples = DynamicMixing(store, mixing, 1)
    mixtures = [examples.example(index) for index in range(options.mixtures)]
    conversations = TurnTaking(store, options.conversations)
    with options.out.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["way", "delay_seconds", "si_snr_improvement_db", "wrong_turns", "turns", "cpu_rtf"])
        for way in options.ways:
            name, _, rest = way.partition(":")
            choices = dict(part.split("=", 1) for part in rest.split(",") if part)
            model = load_model(name).eval()
            gains, began, seconds, delay = [], time.process_time(), 0.0, float("nan")
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
                for mixture, sources in mixtures:
                    tracks, delay = separate(model, choices, mixture.numpy())
                    scores = pairwise(si_snr, torch.from_numpy(tracks)[None].float(), sources[None])[0]
                    best = scores[best_permutation(scores), torch.arange(len(sources))]
                    gains.append(float((best - si_snr(mixture.expand_as(sources), sources)).mean()))
                    seconds += len(mixture) / 8000
                wrong = n_turns = 0
                for index in range(options.conversations):
                    item = conversations[index]
                    tracks, _ = separate(model, choices, item.mixture.numpy())
                    wrong += wrong_turns(torch.from_numpy(tracks), item.turns)
                    n_turns += len(item.turns)
                    seconds += len(item.mixture) / 8000
            factor = (time.process_time() - began) / seconds
            row = [way, f"{delay:.3f}", f"{np.mean(gains):.2f}", wrong, n_turns, f"{factor:.4f}"]
            print(*row, flush=True)
            rows.writerow(row)
            file.flush()
    if options.picture:
        draw(options.out, options.picture)


def draw(table: Path, picture: Path) -> None:
    """Draw the SI-SNRi of every way against its delay, and what the whole recording gives."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    known = {"default": "the default model, whole", "default-live": "the causal model"}
    for row in rows:
        delay, gain = float(row["delay_seconds"]), float(row["si_snr_improvement_db"])
        name, _, choice = row["way"].partition(":")
        if np.isnan(delay):
            axes.axhline(gain, color="gray", linestyle="--", label=known.get(name, name))
        elif not choice:
            axes.plot(delay, gain, "o", color="tab:red", label=known.get(name, name))
    following = [
        (float(row["delay_seconds"]), float(row["si_snr_improvement_db"]))
        for row in rows
        if row["way"].startswith("default:delay=") and "," not in row["way"]
    ]
    if following:
        axes.plot(
            *zip(*sorted(following), strict=True),
            "s-",
            color="tab:blue",
            label="the default model, following",
        )
    axes.set(xscale="log", xlabel="delay in seconds", ylabel="SI-SNRi in dB")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    main()
