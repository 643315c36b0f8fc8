"""Measure a model as its card states it, beside a second one: how well it separates, and how fast.

Usage: python recipes/measure.py MODEL --speech MANIFEST.csv --noise FOLDER FOLDER --out results/

Five conditions, all from the test split of the speech, whole utterances, at the model's sample rate:

    clean   500 pairs in full overlap; the list of `flasepformer mixtures --split test --count 500 --seed 0`
    noise   the first 200 of them, with noise 5 to 15 dB below the two talkers together
    rooms   200 pairs in rooms, made as by `flasepformer mixtures --reverberant`; the targets are dry
    single  every recording alone: how loud is the other track?
    speed   real-time factor on one thread and on two, as by `flasepformer benchmark`; on an idle machine

Every condition has a folder in the results, with a row for each mixture; `measured.md`, `measured.csv` and
`measured.json` are made of all that are there. So conditions can be measured one at a time, and a run that
was cut short goes on where it was.
"""

import argparse
import csv
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flasepformer.benchmark import cases_for, run_benchmark
from flasepformer.data import (
    Mixture,
    MixtureList,
    MixtureSet,
    MixtureSpec,
    SetConfig,
    SpeechStore,
    Utterance,
    make_mixture_list,
    make_set,
    open_mixtures,
    plan_mixtures,
    read_utterances,
)
from flasepformer.data.acoustics import Noise, recordings_of, rms
from flasepformer.evaluation import (
    StoredResult,
    Summary,
    evaluate,
    load_result,
    versions,
    weights_digest,
)
from flasepformer.evaluation.provenance import names_digest
from flasepformer.evaluation.summary import TABLE_FILE
from flasepformer.inference import Separator

SEED = 0
"""Of every set, so that figures of different models and days compare."""
N_CLEAN = 500
N_OTHERS = 200
NOISE_SNR_DB = (5.0, 15.0)
DECAY_SECONDS = (0.2, 0.6)
SPEED_SECONDS = 30.0
"""Length of the recording whose separation is timed."""
SPEED_THREADS = (1, 2)
SCORED = ("clean", "noise", "rooms", "single")
CONDITIONS = (*SCORED, "speed")
PERCENTILES = (10, 25, 50, 75, 90)
"""Of the level of the other track."""
MODELS_FILE = "models.json"
"""Labels of the models that were measured last; the tables are about these."""
_PAIRINGS = {"same sex": "same sex", "mixed sex": "mixed sex", "": "sex not known of one or both"}


@dataclass(frozen=True)
class NoisyMixtures:
    """Mixtures with noise added; each is the same whenever it is asked for."""

    clean: MixtureSet
    noise: Noise
    snr_db: tuple[float, float]
    """Range of the level of all talkers together above the noise, uniform."""
    seed: int

    @property
    def names(self) -> Sequence[str]:
        """Name of every mixture."""
        return self.clean.names

    @property
    def n_sources(self) -> int:
        """Speakers in each mixture."""
        return self.clean.n_sources

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, index: int) -> Mixture:
        item = self.clean[index]
        rng = np.random.default_rng([self.seed, index])
        noise = self.noise.draw(rng, len(item.mixture))
        snr = 10 ** (rng.uniform(*self.snr_db) / 20)
        if not noise.any():
            raise ValueError(f"the noise drawn for {item.name} is silent")
        level = rms(item.mixture.numpy()) / (snr * rms(noise))
        return item._replace(mixture=item.mixture + torch.from_numpy(noise * np.float32(level)))


def single_talkers(utterances: Sequence[Utterance], sample_rate: int) -> MixtureList:
    """Return every recording alone, as a set of mixtures of one talker."""
    specs = [
        MixtureSpec(
            name=f"{number:04d}_{utterance.path.stem}",
            paths=(utterance.path,),
            speakers=(utterance.speaker,),
            gains_db=(0.0,),
            starts_seconds=(0.0,),
            sexes=(utterance.sex,),
            corpora=(utterance.corpus,),
        )
        for number, utterance in enumerate(utterances)
    ]
    return MixtureList(specs, sample_rate)


def load_noise(folders: Sequence[Path], sample_rate: int) -> Noise:
    """Decode every recording under some folders."""
    paths = [path for folder in folders for path in recordings_of(folder)]
    if not paths:
        raise ValueError(
            f"no recordings of noise in {', '.join(map(str, folders)) or 'no folder: give --noise'}"
        )
    return Noise(SpeechStore.load([Utterance(path, "", 0.0) for path in paths], sample_rate))


@dataclass(frozen=True)
class Measurement:
    """What is measured, of which models, and where the results go."""

    models: Mapping[str, str]
    """Name or checkpoint of each model, by its label; the one that is measured, then the one beside it."""
    speech: Path
    split: str
    noise: Sequence[Path]
    out: Path
    counts: Mapping[str, int]
    """Mixtures of each scored condition but `single`, which takes every recording."""
    jobs: int
    overwrite: bool

    def score(self, condition: str) -> None:
        """Score every model in one condition; what is there already, of the same weights and set, stays."""
        separators = {label: Separator.from_pretrained(name, "cpu") for label, name in self.models.items()}
        rates = {separator.sample_rate for separator in separators.values()}
        if len(rates) > 1:
            raise ValueError(f"the models must have the same sample rate to be put side by side, got {rates}")
        with tempfile.TemporaryDirectory() as folder:
            mixtures, settings = self._set(condition, rates.pop(), Path(folder))
            facts = {
                "condition": condition,
                **settings,
                "n_mixtures": len(mixtures),
                "names_sha256": names_digest(mixtures.names),
            }
            for label, separator in separators.items():
                self._score(label, separator, condition, mixtures, facts)

    def _score(
        self, label: str, separator: Separator, condition: str, mixtures: MixtureSet, facts: dict[str, Any]
    ) -> None:
        folder = self.out / condition / label
        weights = weights_digest(separator.model)
        if (folder / TABLE_FILE).exists() and not self.overwrite:
            known = load_result(folder).facts
            if known["model"]["weights_sha256"] == weights and known["set"] == facts:
                print(f"{condition}, {label}: measured already", file=sys.stderr)
                return
            raise ValueError(
                f"{folder} holds results of other weights or another set; give --overwrite or another --out"
            )
        metrics = ("leakage",) if condition == "single" else ("sdr",)
        folder.mkdir(parents=True, exist_ok=True)
        journal = folder / "scores.partial.jsonl"
        if self.overwrite:
            journal.unlink(missing_ok=True)
        print(f"{condition}, {label}", file=sys.stderr)
        result = evaluate(
            separator, mixtures, metrics=metrics, jobs=self.jobs, journal=journal, progress=True
        )
        if result.failures:
            raise ValueError(f"{condition}, {label}: {len(result.failures)} failed, {result.failures[0]}")
        model = {**separator.description, "name": label, "weights_sha256": weights}
        result.write(folder, model=model, set=facts, versions=versions(metrics), device="cpu")
        journal.unlink()

    def _set(self, condition: str, sample_rate: int, folder: Path) -> tuple[MixtureSet, dict[str, Any]]:
        """Return the mixtures of a condition, made in a folder if need be, and what they are."""
        utterances = read_utterances(self.speech, self.split)
        facts: dict[str, Any] = {"split": self.split, "sample_rate": sample_rate}
        if condition == "single":
            return single_talkers(utterances, sample_rate), facts
        facts["seed"] = SEED
        count = self.counts[condition]
        if condition == "rooms":
            config = SetConfig(
                sample_rate=sample_rate, reverberant=True, decay_seconds=DECAY_SECONDS, seed=SEED
            )
            manifests, failures = make_set(
                plan_mixtures(utterances, count, SEED), folder, config, n_threads=self.jobs, progress=True
            )
            if failures:
                raise ValueError(f"{len(failures)} mixtures could not be made, {failures[0]}")
            facts |= {"decay_seconds": list(DECAY_SECONDS), "targets": "the dry talkers"}
            return open_mixtures(manifests[0], sample_rate), facts
        clean = MixtureList(make_mixture_list(utterances, count, SEED), sample_rate)
        if condition == "clean":
            return clean, facts
        noise = load_noise(self.noise, sample_rate)
        facts |= {"noise": sorted(folder.name for folder in self.noise), "snr_db": list(NOISE_SNR_DB)}
        return NoisyMixtures(clean, noise, NOISE_SNR_DB, SEED), facts

    def time(self) -> None:
        """Time every model on each number of threads."""
        for n_threads in SPEED_THREADS:
            folder = self.out / "speed" / f"threads-{n_threads}"
            if (folder / "benchmark.json").exists() and not self.overwrite:
                print(f"speed, {n_threads} threads: measured already", file=sys.stderr)
                continue
            report, _ = run_benchmark(
                cases_for(list(self.models.values()), [SPEED_SECONDS], threads=n_threads),
                folder,
                command=f"flasepformer benchmark {' '.join(self.models)} --lengths {SPEED_SECONDS:g} "
                f"--threads {n_threads}",
            )
            if broken := [result for result in report.results if not result.ok]:
                raise ValueError(f"{broken[0].case.label} could not be timed: {broken[0].error}")


def write_tables(out: Path) -> list[Path]:
    """Write everything that lies in a folder of results as tables; return their paths."""
    order = json.loads((out / MODELS_FILE).read_text(encoding="utf-8"))
    stored = {
        condition: [load_result(out / condition / label) for label in order]
        for condition in SCORED
        if all((out / condition / label / TABLE_FILE).is_file() for label in order)
    }
    groups = {name: [_groups(name, result) for result in results] for name, results in stored.items()}
    rows = [row for name, results in stored.items() for row in _rows(name, results, groups[name])]
    speed = _speed_rows(out)
    tables = []
    if pairs := {key: value for key, value in stored.items() if key != "single"}:
        tables.append(_pairs_table(pairs, groups))
    if "single" in stored:
        tables.append(_single_table(stored["single"]))
    if speed:
        tables.append(_speed_table(speed))
    facts = {
        condition: {**results[0].facts["set"], "models": [result.facts["model"] for result in results]}
        for condition, results in stored.items()
    }
    columns = list(dict.fromkeys(column for row in rows for column in row))
    paths = [out / f"measured.{suffix}" for suffix in ("md", "csv", "json")]
    paths[0].write_text("\n\n".join(tables) + "\n", encoding="utf-8")
    with paths[1].open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    content = {"sets": facts, "rows": rows, "speed": speed}
    paths[2].write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return paths


def _groups(condition: str, result: StoredResult) -> dict[str, Summary]:
    """Return the summary of everything, then of each pairing of sexes that there is."""
    pairings = result.grouped().get("pairing", {}) if condition != "single" else {}
    named = {label: pairings[key] for key, label in _PAIRINGS.items() if key in pairings}
    return {"all": result.summary(), **named}


def _rows(
    condition: str, results: Sequence[StoredResult], groups: Sequence[Mapping[str, Summary]]
) -> list[dict[str, Any]]:
    """Return a row for each group and model, with numbers as they are."""
    rows = []
    for result, summaries in zip(results, groups, strict=True):
        for group, summary in summaries.items():
            row: dict[str, Any] = {
                "condition": condition,
                "group": group,
                "model": result.label,
                "n_mixtures": summary.n_mixtures,
            }
            if condition == "single":
                row |= _leak(result)
            else:
                low, high = summary.interval["si_snr_improvement"]
                mean = summary.mean
                row |= {
                    "mixture_si_snr": mean["mixture_si_snr"],
                    "mixture_sdr": mean["mixture_sdr"],
                    "si_snr": mean["si_snr"],
                    "si_snr_improvement": mean["si_snr_improvement"],
                    "si_snr_improvement_low": low,
                    "si_snr_improvement_high": high,
                    "si_snr_improvement_median": summary.median["si_snr_improvement"],
                    "sdr": mean["sdr"],
                    "sdr_improvement": mean["sdr_improvement"],
                    "share_worse": summary.share_worse,
                }
            rows.append({key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()})
    return rows


def _leak(result: StoredResult) -> dict[str, float]:
    """Return how loud the other track is against the input, and how well the talker's own is kept, in dB."""
    leaks = [row.scores["leakage"][0] for row in result.rows]
    kept = [score for row in result.rows for score in row.scores["si_snr"] if not math.isnan(score)]
    levels = {f"leak_{p}_percent": float(np.percentile(leaks, p)) for p in PERCENTILES}
    return {
        **levels,
        "leak_loudest": max(leaks),
        "share_of_leaks_above_minus_20": statistics.mean(leak > -20 for leak in leaks),
        "own_track_si_snr_median": statistics.median(kept),
    }


def _pairs_table(
    stored: Mapping[str, Sequence[StoredResult]], groups: Mapping[str, Sequence[Mapping[str, Summary]]]
) -> str:
    labels = [result.label for result in next(iter(stored.values()))]
    header = ["mixtures", "number", "mixture SI-SNR", "mixture SDR"]
    for label in labels:
        header += [f"{label}: SI-SNRi", "95 %", "SDRi", "below 0 dB"]
    lines = []
    for condition in stored:
        for group, first in groups[condition][0].items():
            mixture = [first.mean[f"mixture_{metric}"] for metric in ("si_snr", "sdr")]
            cells = [f"{condition}, {group}", str(first.n_mixtures), *map(_decibels, mixture)]
            for summaries in groups[condition]:
                summary = summaries[group]
                low, high = summary.interval["si_snr_improvement"]
                cells += [
                    _decibels(summary.mean["si_snr_improvement"]),
                    "" if math.isnan(low) else f"{low:.2f} to {high:.2f}",
                    _decibels(summary.mean["sdr_improvement"]),
                    f"{summary.share_worse:.0%}",
                ]
            lines.append(cells)
    return f"Means in dB, with the 95 % interval of the SI-SNRi:\n\n{_markdown(header, lines)}"


def _single_table(results: Sequence[StoredResult]) -> str:
    header = ["one talker alone", "number", *(f"{p} %" for p in PERCENTILES), "loudest", "above -20 dB",
              "own track, SI-SNR"]  # fmt: skip
    lines = []
    for result in results:
        leak = _leak(result)
        levels = [leak[f"leak_{p}_percent"] for p in PERCENTILES]
        lines.append([
            result.label, str(len(result.rows)), *map(_decibels, [*levels, leak["leak_loudest"]]),
            f"{leak['share_of_leaks_above_minus_20']:.0%}", _decibels(leak["own_track_si_snr_median"]),
        ])  # fmt: skip
    note = (
        "Level of the other track against the input in dB, percentiles over the recordings (lower is better);"
        " in the last column, the median of how well the talker's own track is kept:"
    )
    return f"{note}\n\n{_markdown(header, lines)}"


def _speed_rows(out: Path) -> list[dict[str, Any]]:
    """Return model, threads and real-time factor of each timing that is there."""
    rows = []
    for path in sorted((out / "speed").glob("threads-*/benchmark.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        for row in content["rows"]:
            keys = ("model", "threads", "seconds", "real_time_factor", "peak_memory_mb")
            rows.append({key: row[key] for key in keys} | {"cpu": content["machine"].get("cpu", "")})
    return rows


def _speed_table(rows: Sequence[Mapping[str, Any]]) -> str:
    header = ["model", "threads", "recording", "real-time factor", "memory above the model"]
    lines = [
        [row["model"], str(row["threads"]), f"{row['seconds']:g} s", f"{row['real_time_factor']:.4f}",
         f"{row['peak_memory_mb']:.0f} MB"]
        for row in rows
    ]  # fmt: skip
    return _markdown(header, lines)


def _decibels(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def label_of(model: str) -> str:
    """Return what a model is called in the results: its name, or the last part of its path."""
    return model.rstrip("/").rsplit("/", 1)[-1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for, and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="name or checkpoint")
    parser.add_argument("--baseline", default="default-1", help="name or checkpoint of the second model")
    parser.add_argument(
        "--speech", type=Path, required=True, help="CSV manifest of single talkers, or folder"
    )
    parser.add_argument("--split", default="test", help="of the speech; speakers that no training has seen")
    parser.add_argument("--noise", type=Path, nargs="+", default=[], help="folders of noise")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=CONDITIONS)
    parser.add_argument("--count", type=int, default=N_CLEAN, help="clean mixtures")
    parser.add_argument("--others", type=int, default=N_OTHERS, help="mixtures with noise, and in rooms")
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--overwrite", action="store_true", help="measure again what is there")
    parser.add_argument("--label", help="name of the model in the results [default: of its folder]")
    options = parser.parse_args(arguments)
    models = {options.label or label_of(options.model): options.model}
    if label_of(options.baseline) in models:
        parser.error(f"both models are called {label_of(options.baseline)}; give --label")
    models[label_of(options.baseline)] = options.baseline
    measurement = Measurement(
        models=models,
        speech=options.speech,
        split=options.split,
        noise=options.noise,
        out=options.out,
        counts={"clean": options.count, "noise": options.others, "rooms": options.others},
        jobs=options.jobs,
        overwrite=options.overwrite,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / MODELS_FILE).write_text(json.dumps(list(models)) + "\n", encoding="utf-8")
    try:
        for condition in options.conditions:
            if condition == "speed":
                measurement.time()
            else:
                measurement.score(condition)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    finally:
        paths = write_tables(options.out)
    print(paths[0].read_text(encoding="utf-8"), *paths, sep="\n")


if __name__ == "__main__":
    main()
