"""Quality of live separation against its delay, one row for each way of following.

Usage: python benchmarks/delay.py --speech MANIFEST.csv [--out delay.csv] [--picture delay.png]
           [--mixtures 50] [--conversations 10] [--talks 4]
           [--ways MODEL[:delay=0.5[,hop=0.25][,window=4][,sums=no]] ...]

Talks are conversations of 5 minutes in which people interrupt each other, as `flasepformer measure` makes
them, for the share of the talking time on the wrong track. A way is a model and how it follows; a model alone
hears everything, or is played live if it is causal. CPU time over the length of the recordings is the
real-time factor.
"""

import argparse
import csv
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flasepformer.data import DynamicMixing, DynamicMixingConfig, SpeechStore, TurnTaking, read_utterances
from flasepformer.evaluation import MeasuredSpeech
from flasepformer.inference.engines import CausalEngine, FollowingEngine
from flasepformer.inference.levels import MODEL_RMS
from flasepformer.metrics import best_permutation, pairwise, si_snr, talker_confusion, wrong_turns
from flasepformer.models import load_model

WAYS = [
    "default-fast", "default-live", *(f"default-fast:delay={delay}" for delay in (0.2, 0.25, 0.5, 1.0, 2.0)), 
    "default-fast:delay=0.5,sums=no",
    "default-fast:delay=0.5,hop=0.128", "default-fast:delay=0.5,hop=0.384", "default-fast:delay=0.5,window=8",
    "default-fast:delay=0.5,window=2",
]  # fmt: skip
COLUMNS = [
    "way", "delay_seconds", "si_snr_improvement_db", "wrong_turns", "turns", "wrong_time_percent", "cpu_rtf",
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
    parser.add_argument("--talks", type=int, default=4, help="conversations of 5 minutes")
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
    measured = MeasuredSpeech(options.speech, options.split, conversation_seconds=300.0)
    with options.out.open("w", newline="") as file, tempfile.TemporaryDirectory() as folder:
        talks = (
            measured.mixtures("conversations", options.talks, 8000, Path(folder))[0] if options.talks else []
        )
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
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
                confused = []
                for index in range(options.talks):
                    item = talks[index]
                    tracks, delay = separate(model, choices, item.mixture.numpy())
                    share = talker_confusion(torch.from_numpy(tracks).float(), item.sources, 8000)
                    confused.append(100 * float(share))
                    print(way, f"talk {index}: {confused[-1]:.1f} %", flush=True)
                    seconds += len(item.mixture) / 8000
            factor = (time.process_time() - began) / seconds
            row = [way, f"{delay:.3f}", _mean(gains, 2), wrong, n_turns, _mean(confused, 1), f"{factor:.4f}"]
            print(*row, flush=True)
            rows.writerow(row)
            file.flush()
    if options.picture:
        draw(options.out, options.picture)


def _mean(values: Sequence[float], n_digits: int) -> str:
    return f"{np.mean(values):.{n_digits}f}" if values else ""


def draw(table: Path, picture: Path) -> None:
    """Draw SI-SNRi and time on the wrong track of every way against its delay, and of the whole recording."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    shown = {
        "si_snr_improvement_db": "SI-SNRi in dB",
        "wrong_time_percent": "talking time on the wrong track in %",
    }
    figure, panels = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for axes, (column, label) in zip(panels, shown.items(), strict=True):
        following = []
        for row in rows:
            if not row[column]:
                continue
            delay, value = float(row["delay_seconds"]), float(row[column])
            name, _, choice = row["way"].partition(":")
            if np.isnan(delay):
                axes.axhline(value, color="gray", linestyle="--", label=f"{name}, whole")
            elif not choice:
                axes.plot(delay, value, "o", color="tab:red", label=f"{name}, causal")
            elif "," not in choice:
                following.append((delay, value))
        if following:
            axes.plot(
                *zip(*sorted(following), strict=True), "s-", color="tab:blue", label="default-fast, following"
            )
        axes.set(xscale="log", xlabel="delay in seconds", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main()
