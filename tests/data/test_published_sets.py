import csv
import shutil

import numpy as np
import pytest
import soundfile
import torch
from torch.testing import assert_close

from flasepformer.data import (
    MixtureManifest,
    check_published_set,
    open_mixtures,
    read_mixture_manifest,
    read_utterances,
)
from flasepformer.data.published_sets import grouped

WSJ0_NAMES = {
    "tr": ["011a0101_1.1_40na010x_-1.1", "40na0101_0.5_011a0102_-0.5"],
    "cv": ["011a0103_0.2_40na0103_-0.2"],
    "tt": ["050a0501_1.4_422c0201_-1.4", "447o0301_0.7_440c0201_-0.7"],
}
LIBRI_NAMES = {
    "train-100": ["103-1240-0000_1034-121119-0001"],
    "dev": ["84-121123-0001_174-50561-0002"],
    "test": ["61-70968-0000_121-121726-0003", "237-126133-0001_260-123286-0004"],
}


def write(path, waveform, rate, subtype="PCM_16"):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, waveform, rate, subtype)


def third(names):
    """Return the names with one more talker."""
    extra = {"tr": "022a0101_0", "cv": "022a0102_0", "tt": "051a0501_0"}
    return {split: [f"{name}_{extra[split]}" for name in items] for split, items in names.items()}


def make_wsj0(root, n_sources=2, rate=8000, mode="min"):
    rng = np.random.default_rng(0)
    names = WSJ0_NAMES if n_sources == 2 else third(WSJ0_NAMES)
    for split, items in names.items():
        for name in items:
            sources = 0.05 * rng.standard_normal((n_sources, 1600))
            folder = root / f"{n_sources}speakers/wav{rate // 1000}k/{mode}" / split
            for talker, source in enumerate(sources, start=1):
                write(folder / f"s{talker}" / f"{name}.wav", source, rate)
            write(folder / "mix" / f"{name}.wav", sources.sum(0), rate)


def make_wham(root):
    rng = np.random.default_rng(0)
    for split, items in WSJ0_NAMES.items():
        for name in items:
            s1, s2, noise = 0.05 * rng.standard_normal((3, 1600))
            tracks = {"s1": s1, "s2": s2, "noise": noise, "mix_clean": s1 + s2}
            tracks |= {"mix_both": s1 + s2 + noise, "mix_single": s1 + noise}
            for track, waveform in tracks.items():
                write(root / "wav8k/min" / split / track / f"{name}.wav", waveform, 8000, "FLOAT")


def make_whamr(root):
    rng = np.random.default_rng(0)
    for split, items in WSJ0_NAMES.items():
        for name in items:
            dry, wet, (noise,) = (0.05 * rng.standard_normal((n, 1600)) for n in (2, 2, 1))
            tracks = {"noise": noise}
            for label, (s1, s2) in (("anechoic", dry), ("reverb", wet)):
                tracks |= {f"s1_{label}": s1, f"s2_{label}": s2, f"mix_clean_{label}": s1 + s2}
                tracks |= {f"mix_both_{label}": s1 + s2 + noise, f"mix_single_{label}": s1 + noise}
            for track, waveform in tracks.items():
                write(root / "wav8k/min" / split / track / f"{name}.wav", waveform, 8000, "FLOAT")


def make_librimix(root, n_sources=2):
    rng = np.random.default_rng(0)
    extra = {"train-100": "_118-1-0", "dev": "_251-1-0", "test": "_672-1-0"}
    base = root / f"Libri{n_sources}Mix/wav8k/min"
    (base / "metadata").mkdir(parents=True)
    for split, items in LIBRI_NAMES.items():
        names = [name + extra[split] * (n_sources - 2) for name in items]
        for name in names:
            *sources, noise = 0.05 * rng.standard_normal((n_sources + 1, 1600))
            for talker, source in enumerate(sources, start=1):
                write(base / split / f"s{talker}" / f"{name}.wav", source, 8000)
            write(base / split / "noise" / f"{name}.wav", noise, 8000)
            write(base / split / "mix_clean" / f"{name}.wav", sum(sources), 8000)
            write(base / split / "mix_both" / f"{name}.wav", sum(sources) + noise, 8000)
        with (base / "metadata" / f"mixture_{split}_mix_clean.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["mixture_ID", "mixture_path", "source_1_path", "source_2_path", "length"])
            for name in names:
                tracks = [f"/where/it/was/{track}/{name}.wav" for track in ("mix_clean", "s1", "s2")]
                writer.writerow([name, *tracks, 1600])


MAKERS = {
    "wsj0-2mix": make_wsj0,
    "wsj0-3mix": lambda root: make_wsj0(root, 3),
    "wham": make_wham,
    "whamr": make_whamr,
    "libri2mix": make_librimix,
    "libri3mix": lambda root: make_librimix(root, 3),
}
TASKS = [
    ("wsj0-2mix", None, "mix", "s1", 5),
    ("wsj0-3mix", "clean", "mix", "s1", 5),
    ("wham", None, "mix_both", "s1", 5),
    ("wham", "clean", "mix_clean", "s1", 5),
    ("whamr", None, "mix_both_reverb", "s1_anechoic", 5),
    ("whamr", "reverberant", "mix_clean_reverb", "s1_anechoic", 5),
    ("whamr", "noisy", "mix_both_anechoic", "s1_anechoic", 5),
    ("whamr", "clean", "mix_clean_anechoic", "s1_anechoic", 5),
    ("libri2mix", None, "mix_clean", "s1", 4),
    ("libri3mix", "noisy", "mix_both", "s1", 4),
]


def check(name, root, **options):
    return check_published_set(name, root, **{"partial": True, "n_threads": 1, **options})


@pytest.mark.parametrize(("name", "task", "mixture", "source", "n_mixtures"), TASKS)
def test_a_sound_set_opens_through_its_manifests(tmp_path, name, task, mixture, source, n_mixtures):
    MAKERS[name](tmp_path / "set")
    report = check(name, tmp_path / "set", task=task)
    assert report.problems == ()
    assert sum(map(len, report.mixtures.values())) == n_mixtures
    paths = report.write(tmp_path / "set/prepared")
    assert str(tmp_path) not in paths[-1].read_text()
    shutil.move(tmp_path / "set", tmp_path / "moved")  # as LibriMix' own metadata cannot
    test = paths[-1].name
    (item, *_) = open_mixtures(tmp_path / "moved/prepared" / test, 8000)
    files = read_mixture_manifest(tmp_path / "moved/prepared" / test)[0]
    assert files.mixture.parent.name == mixture
    assert files.sources[0].parent.name == source
    expected = [soundfile.read(path, dtype="float32")[0] for path in (files.mixture, *files.sources)]
    assert_close(torch.stack([item.mixture, *item.sources]), torch.from_numpy(np.stack(expected)))
    assert (item.sample_rate, files.n_samples, len(files.sources)) == (8000, 1600, 3 if "3" in name else 2)


def test_names_tell_the_speakers(tmp_path):
    make_wsj0(tmp_path)
    (files, _) = check("wsj0-2mix", tmp_path).mixtures["tt"]
    assert files.utterances == ("050a0501", "422c0201")
    assert files.speakers == ("050", "422")
    make_librimix(tmp_path)
    (files,) = check("libri2mix", tmp_path).mixtures["dev"]
    assert files.utterances == ("84-121123-0001", "174-50561-0002")
    assert files.speakers == ("84", "174")


def test_16_khz_max_and_the_folder_itself(tmp_path):
    make_wsj0(tmp_path, rate=16000, mode="max")
    report = check("wsj0-2mix", tmp_path / "2speakers", sample_rate=16000, mode="max")
    assert report.problems == ()
    assert report.mixtures["tt"][0].sample_rate == 16000
    with pytest.raises(FileNotFoundError, match=r"no folder .*wav8k.min or .*2speakers.wav8k.min"):
        check("wsj0-2mix", tmp_path)


def test_counts_are_those_published_unless_the_set_is_partial(tmp_path):
    make_wham(tmp_path)
    shutil.rmtree(tmp_path / "wav8k/min/cv")
    problems = grouped(check("wham", tmp_path, partial=False).problems)
    assert problems == {
        "missing split": [str(tmp_path / "wav8k/min/cv")],
        "wrong number of mixtures": [
            "tr/mix_both holds 2, published are 20,000",
            "tt/mix_both holds 2, published are 3,000",
        ],
    }
    assert check("wham", tmp_path).problems == ()
    assert [*grouped(check("wham", tmp_path, splits=["cv"]).problems)] == ["missing split"]


def test_one_train_split_of_librimix_is_enough(tmp_path):
    make_librimix(tmp_path)
    kinds = grouped(check("libri2mix", tmp_path, partial=False).problems)
    assert [*kinds] == ["wrong number of mixtures"]
    shutil.rmtree(tmp_path / "Libri2Mix/wav8k/min/train-100")
    kinds = grouped(check("libri2mix", tmp_path, partial=False).problems)
    assert len(kinds["missing split"]) == 2


def test_an_unknown_task_or_split_names_those_there_are(tmp_path):
    with pytest.raises(
        ValueError, match="wham has the tasks noisy, clean and the splits tr, cv, tt, not dry"
    ):
        check("wham", tmp_path, task="dry")
    with pytest.raises(ValueError, match="not test"):
        check("wham", tmp_path, splits=["test"])


NAME = WSJ0_NAMES["tt"][0]


def silence(folder):
    write(folder / "s1" / f"{NAME}.wav", np.zeros(1600), 8000)


def cut(folder):
    waveform, rate = soundfile.read(folder / "s2" / f"{NAME}.wav")
    write(folder / "s2" / f"{NAME}.wav", waveform[:1500], rate)


def truncate(folder):
    path = folder / "noise" / f"{NAME}.wav"
    path.write_bytes(path.read_bytes()[:-400])


def change_rate(folder):
    waveform, _ = soundfile.read(folder / "s1" / f"{NAME}.wav")
    write(folder / "s1" / f"{NAME}.wav", waveform, 16000)


def change_gain(folder):
    waveform, rate = soundfile.read(folder / "s1" / f"{NAME}.wav")
    write(folder / "s1" / f"{NAME}.wav", 0.99 * waveform, rate)


def lose_source(folder):
    (folder / "s2" / f"{NAME}.wav").unlink()


def lose_mixture(folder):
    (folder / "mix_both" / f"{NAME}.wav").unlink()


def make_page(folder):
    (folder / "s1" / f"{NAME}.wav").write_text("<!DOCTYPE html><html>404</html>")


def empty(folder):
    (folder / "noise" / f"{NAME}.wav").write_bytes(b"")


def not_numbers(folder):
    waveform, rate = soundfile.read(folder / "s1" / f"{NAME}.wav")
    waveform[100] = np.nan
    write(folder / "s1" / f"{NAME}.wav", waveform, rate, "FLOAT")


def rename(new):
    def damage(folder):
        for track in folder.iterdir():
            (track / f"{NAME}.wav").rename(track / f"{new}.wav")

    return damage


DAMAGES = [
    (silence, "silent source", f"tt/s1/{NAME}.wav"),
    (cut, "lengths differ", f"tt/{NAME}: {{'mix_both': 1600, 's1': 1600, 's2': 1500, 'noise': 1600}}"),
    (truncate, "lengths differ", f"tt/{NAME}: {{'mix_both': 1600, 's1': 1600, 's2': 1600, 'noise': 1500}}"),
    (change_rate, "wrong sample rate or channels", f"tt/s1/{NAME}.wav: 16000 Hz, 1"),
    (change_gain, "mix_both is not the sum of s1 + s2 + noise", f"tt/{NAME}: off by up to 0.00"),
    (not_numbers, "mix_both is not the sum of s1 + s2 + noise", f"tt/{NAME}: off by up to"),
    (lose_source, "missing file", f"tt/s2/{NAME}.wav"),
    (lose_mixture, "missing file", f"tt/mix_both/{NAME}.wav"),
    (make_page, "unreadable file", f"tt/s1/{NAME}.wav: "),
    (empty, "unreadable file", f"tt/noise/{NAME}.wav: "),
    (rename("011a0501_1.4_422c0201_-1.4"), "speaker in two splits", "tr and tt share 1: 011"),
    (rename("422a0501_1.4_422c0201_-1.4"), "one speaker twice in a mixture", "tt/422a0501_1.4_422c0201_-1.4"),
    (rename("mixture7"), "name without its speakers", "tt/mixture7"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "kind", "what"), DAMAGES)
def test_each_damage_is_named_and_left_out(tmp_path, damage, kind, what):
    make_wham(tmp_path)
    damage(tmp_path / "wav8k/min/tt")
    report = check("wham", tmp_path)
    problems = [problem for problem in report.problems if problem.kind == kind]
    assert problems[0].what.startswith(what)
    n_sound = 2 if kind == "speaker in two splits" else 1
    assert len(report.mixtures["tt"]) == n_sound


def test_speakers_that_train_and_cv_share_are_a_note(tmp_path):
    make_wsj0(tmp_path)
    assert grouped(check("wsj0-2mix", tmp_path).notes) == {
        "speaker in two splits by the set's design": ["tr and cv share 2: 011, 40n"]
    }


def test_moved_librimix_is_a_note_and_a_lost_mixture_a_problem(tmp_path):
    make_librimix(tmp_path)
    report = check("libri2mix", tmp_path)
    (note,) = {note.kind for note in report.notes}
    assert note == "metadata of a folder that was moved (not used here)"
    name = LIBRI_NAMES["test"][0]
    for path in tmp_path.rglob(f"{name}.wav"):
        path.unlink()
    report = check("libri2mix", tmp_path)
    assert grouped(report.problems) == {"in the metadata, not on disk": [f"test: 1: {name}"]}


def test_the_number_of_threads_changes_nothing(tmp_path):
    make_wham(tmp_path)
    silence(tmp_path / "wav8k/min/tt")
    assert check("wham", tmp_path) == check("wham", tmp_path, n_threads=4)


def test_a_manifest_gives_its_sources_as_utterances_each_once(tmp_path):
    make_wsj0(tmp_path)
    folder = tmp_path / "2speakers/wav8k/min/tr"
    first, second = WSJ0_NAMES["tr"]
    for track in ("mix", "s1", "s2"):  # 40na010x is said in the first as well, but there it is cut shorter
        waveform, _ = soundfile.read(folder / track / f"{first}.wav")
        (folder / track / f"{first}.wav").unlink()
        write(folder / track / "011a0101_1.1_40na0101_-1.1.wav", waveform[:800], 8000)
    check("wsj0-2mix", tmp_path).write(tmp_path / "prepared")
    utterances = read_utterances(tmp_path / "prepared", "tr")
    assert [(u.speaker, u.path.resolve(), u.duration_seconds) for u in utterances] == [
        ("011", folder / "s1/011a0101_1.1_40na0101_-1.1.wav", 0.1),
        ("40n", folder / "s1" / f"{second}.wav", 0.2),
        ("011", folder / "s2" / f"{second}.wav", 0.2),
    ]
    assert utterances == read_utterances(tmp_path / "prepared/tr.csv")


def test_librimix_own_metadata_is_no_manifest_and_the_error_says_what_to_do(tmp_path):
    make_librimix(tmp_path)
    metadata = tmp_path / "Libri2Mix/wav8k/min/metadata/mixture_test_mix_clean.csv"
    with pytest.raises(ValueError, match=r"lacks name, .*`flasepformer prepare` writes one"):
        open_mixtures(metadata, 8000)


def test_a_set_without_known_sexes_has_no_groups(tmp_path):
    make_wsj0(tmp_path)
    mixtures = MixtureManifest(check("wsj0-2mix", tmp_path).mixtures["tt"])
    assert [mixtures[0].groups, mixtures.names, mixtures.n_sources, len(mixtures)] == [
        {}, WSJ0_NAMES["tt"], 2, 2
    ]  # fmt: skip
