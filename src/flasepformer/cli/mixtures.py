"""`flasepformer mixtures`: mixtures drawn from recordings of single talkers, as a list or as audio files."""

import errno
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flasepformer.cli.console import print_message, print_result

if TYPE_CHECKING:
    from flasepformer.data import PlannedMixture, SetConfig, Utterance

_DEFAULT_COUNT = {"list": 500, "set": 500, "conversations": 10}


def mixtures(
    speech: Annotated[
        Path,
        typer.Argument(
            exists=True, help="Single-talker speech: a folder per speaker (of a --split), or a CSV manifest."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="CSV to write, or folder of the set. [default: mixtures.csv, or mixtures]"
        ),
    ] = None,
    kind: Annotated[
        Literal["list", "set", "conversations"],
        typer.Option(
            help="A CSV list, whose mixtures are made when they are scored; a LibriMix-style set of audio "
            "files; or conversations, with turns, pauses and overlap, as audio files."
        ),
    ] = "list",
    split: Annotated[str | None, typer.Option(help="Use only this split of the speech.")] = None,
    count: Annotated[
        int | None,
        typer.Option(min=1, help="Number of mixtures, of each length. [default: 500, or 10 conversations]"),
    ] = None,
    talkers: Annotated[int, typer.Option(min=2, help="Talkers in each mixture.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same mixtures.")] = 0,
    sample_rate: Annotated[int, typer.Option(min=2000, help="Of the audio files, in Hz.")] = 8000,
    mode: Annotated[
        Literal["min", "max"],
        typer.Option(help="Of a set: mixtures cut to the shortest talker, or filled up to the longest."),
    ] = "min",
    noise: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Folder of noise: adds mix_both/ and noise/."),
    ] = None,
    reverberant: Annotated[
        bool, typer.Option("--reverberant", help="Simulate rooms; the dry talkers are the targets.")
    ] = False,
    decay: Annotated[
        tuple[float, float], typer.Option(help="Range of the rooms' reverberation time (T60) in seconds.")
    ] = (0.2, 0.6),
    minutes: Annotated[
        list[float] | None,
        typer.Option(min=0.1, help="Length of conversations; repeatable. [default: 2]"),
    ] = None,
    overlap_share: Annotated[
        float, typer.Option(min=0, max=0.5, help="Share of overlapped speech in conversations.")
    ] = 0.3,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", min=1, help="Mixtures made at a time. [default: one per core]"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a list that exists.")] = False,
) -> None:
    """Draw mixtures of different talkers, balanced over their sexes.

    A list holds paths relative to itself, gains and starts. Audio files come with manifests for `evaluate`
    and `train`, and a timeline of who speaks when; a run that was stopped goes on when it is started again.

    Exit codes: 0 all done, 1 some mixtures could not be made, 2 wrong usage, 3 the disk or a missing extra,
    130 interrupted.
    """
    from flasepformer.data import SetConfig, plan_conversations, plan_mixtures, read_utterances

    if kind == "list" and (noise or reverberant):
        raise typer.BadParameter(
            "--noise and --reverberant make audio files; give --kind set or conversations"
        )
    count = count or _DEFAULT_COUNT[kind]
    try:
        with warnings.catch_warnings(record=True) as cautions:
            warnings.simplefilter("always")
            utterances = read_utterances(speech, split)
        for caution in cautions:
            print_message(f"warning: {caution.message}")
        if kind == "list":
            _write_list(utterances, count, seed, talkers, out or Path("mixtures.csv"), overwrite)
            return
        config = SetConfig(
            sample_rate=sample_rate, mode=mode, noise=str(noise or ""), reverberant=reverberant,
            decay_seconds=decay, seed=seed,
        )  # fmt: skip
        if kind == "set":
            plans = plan_mixtures(utterances, count, seed, n_sources=talkers)
        else:
            plans = [
                plan
                for length in minutes or [2.0]
                for plan in plan_conversations(
                    utterances, count, seed, n_sources=talkers, seconds=60 * length, overlap=overlap_share
                )
            ]
        _make_set(plans, out or Path("mixtures"), config, jobs)
    except (ValueError, FileNotFoundError) as error:
        raise typer.BadParameter(str(error)) from error
    except ImportError as error:
        print_message(f"error: {error}")
        raise typer.Exit(3) from error


def _write_list(
    utterances: Sequence["Utterance"], count: int, seed: int, talkers: int, out: Path, overwrite: bool
) -> None:
    from flasepformer.data import make_mixture_list, write_mixture_list

    if out.exists() and not overwrite:
        raise typer.BadParameter(f"{out} exists; give --overwrite, or another --out")
    specs = make_mixture_list(utterances, count, seed, n_sources=talkers)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_mixture_list(specs, out)
    except OSError as error:
        print_message(f"error: {out} cannot be written: {error.strerror}")
        raise typer.Exit(3) from error
    print_result(str(out))


def _make_set(plans: Sequence["PlannedMixture"], out: Path, config: "SetConfig", workers: int | None) -> None:
    from flasepformer.data import estimated_bytes, make_set

    try:
        manifests, failures = make_set(plans, out, config, n_threads=workers, progress=True)
    except OSError as error:
        print_message(f"error: {out} cannot be written: {error.strerror}")
        if error.errno == errno.ENOSPC:
            needed = estimated_bytes(plans, config) / 1e9
            print_message(f"the set takes about {needed:.3g} GB; make room and start again, it goes on")
        raise typer.Exit(3) from error
    except KeyboardInterrupt:
        print_message("interrupted; the same command goes on")
        raise typer.Exit(130) from None
    for name, reason in failures:
        print_message(f"error: {name}: {reason}")
    for path in manifests:
        print_result(str(path))
    raise typer.Exit(1 if failures else 0)
