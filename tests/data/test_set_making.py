import csv
import hashlib
import json
import os
import signal
import subprocess
import time
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from tests.processes import start_command
from torch.testing import assert_close

from flasepformer.data import (
    MixtureFolder,
    SetConfig,
    estimated_bytes,
    make_set,
    open_mixtures,
    plan_conversations,
    plan_mixtures,
    read_mixture_manifest,
    read_utterances,
)
from flasepformer.data.loudness import loudness

RATE = 16000


@pytest.fixture
def speech(tmp_path):
    """Four speakers of three utterances each, 1 to 1.6 s of coloured noise at 16 kHz."""
    rng = np.random.default_rng(0)
    for k in range(4):
        (tmp_path / f"speech/{k}").mkdir(parents=True)
        for u in range(3):
            voice = np.cumsum(rng.standard_normal(RATE + 3200 * ((k + u) % 4)))
            voice = np.diff(voice - voice.mean()) * 0.05 * (k + 1)
            soundfile.write(tmp_path / f"speech/{k}/{k}-{u}.wav", voice, RATE, "FLOAT")
    return tmp_path / "speech"


@pytest.fixture
def noise(tmp_path):
    (tmp_path / "noise").mkdir()
    rng = np.random.default_rng(1)
    for k in range(3):
        soundfile.write(tmp_path / f"noise/{k}.wav", 0.01 * rng.standard_normal(11000), RATE, "FLOAT")
    return str(tmp_path / "noise")


def tree(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read(folder, track, name):
    waveform, rate = soundfile.read(folder / track / f"{name}.wav", dtype="float32")
    assert rate == 8000
    return waveform


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_set_has_the_layout_of_librimix_and_exact_sums(speech, noise, tmp_path):
    plans = plan_mixtures(read_utterances(speech), 5, seed=1)
    manifests, failures = make_set(plans, tmp_path / "set", SetConfig(noise=noise), n_threads=2)
    assert failures == []
    assert [path.name for path in manifests] == ["mix_both.csv", "mix_clean.csv"]
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == [
        "mix_both", "mix_both.csv", "mix_clean", "mix_clean.csv", "noise", "s1", "s2", "settings.json",
        "timeline.csv",
    ]  # fmt: skip
    for plan in plans:
        tracks = {
            t: read(tmp_path / "set", t, plan.name) for t in ("s1", "s2", "noise", "mix_clean", "mix_both")
        }
        np.testing.assert_array_equal(tracks["mix_clean"], tracks["s1"] + tracks["s2"])
        np.testing.assert_array_equal(tracks["mix_both"], tracks["mix_clean"] + tracks["noise"])
        seconds = min(turn.utterance.duration_seconds for turn in plan.turns)
        assert len(tracks["noise"]) == round(8000 * seconds)
    made = open_mixtures(manifests[0], 8000)
    (first, *_) = MixtureFolder(tmp_path / "set", "mix_both")
    assert_close(made[0].mixture, first.mixture, rtol=0, atol=0)
    assert_close(made[0].sources, first.sources, rtol=0, atol=0)
    assert read_mixture_manifest(manifests[0])[0].speakers == plans[0].speakers
    assert len(read_utterances(manifests[0])) == len({turn.utterance for p in plans for turn in p.turns})


def test_levels_are_those_of_the_timeline_and_within_the_ranges(speech, noise, tmp_path):
    config = SetConfig(noise=noise, mode="max", sample_rate=16000)
    make_set(plan_mixtures(read_utterances(speech), 6, seed=1), tmp_path / "set", config, n_threads=1)
    rows = rows_of(tmp_path / "set/timeline.csv")
    assert len(rows) >= 18
    for row in rows:
        start, end = (round(16000 * float(row[key])) for key in ("start_s", "end_s"))
        path = tmp_path / "set" / row["track"] / f"{row['mixture']}.wav"
        waveform, _ = soundfile.read(path, dtype="float32")
        if row["track"] != "noise":
            assert not waveform[end:].any()
            waveform = waveform[start:end]
        low, high = (-38, -30) if row["track"] == "noise" else (-33, -25)
        assert low <= float(row["lufs"]) <= high
        assert loudness(waveform, 16000) == pytest.approx(float(row["lufs"]), abs=0.05)
    names = [row["mixture"] for row in rows if row["track"] == "s1"]
    for name in names:
        ends = [float(row["end_s"]) for row in rows if row["mixture"] == name and row["track"] != "noise"]
        length = soundfile.info(tmp_path / f"set/s1/{name}.wav").duration
        assert length == pytest.approx(max(ends), abs=1e-3)  # "max": as long as the longest


def test_a_reverberant_set_has_dry_targets_in_line_with_the_direct_sound(speech, tmp_path):
    plans = plan_mixtures(read_utterances(speech), 2, seed=1)
    config = SetConfig(reverberant=True, decay_seconds=(0.2, 0.25))
    (manifest,), _ = make_set(plans, tmp_path / "set", config, n_threads=1)
    make_set(plans, tmp_path / "dry", SetConfig(), n_threads=1)
    for mixture in open_mixtures(manifest, 8000):
        reverb = [read(tmp_path / "set", f"s{k}_reverb", mixture.name) for k in (1, 2)]
        np.testing.assert_array_equal(mixture.mixture, sum(reverb))
        for k in (1, 2):
            target, wet = mixture.sources[k - 1].numpy(), reverb[k - 1]
            lags = np.fft.irfft(np.fft.rfft(wet, 2 * len(wet)) * np.fft.rfft(target, 2 * len(wet)).conj())
            assert int(np.abs(lags).argmax()) == 0  # the direct sound is in its place
            dry = read(tmp_path / "dry", f"s{k}", mixture.name)
            assert np.corrcoef(dry, target)[0, 1] > 0.6  # white, and late by up to half a sample
            assert target.std() / dry.std() == pytest.approx(1, abs=0.05)
    assert len(rows_of(tmp_path / "set/rooms.csv")) == 2


def test_conversations_follow_their_timeline(speech, tmp_path):
    plans = plan_conversations(read_utterances(speech), 2, seed=0, seconds=20.0)
    (manifest,), failures = make_set(plans, tmp_path / "set", SetConfig(), n_threads=1)
    assert failures == []
    rows = rows_of(tmp_path / "set/timeline.csv")
    for item in open_mixtures(manifest, 8000):
        assert item.mixture.shape == (160000,)
        spoken = torch.zeros(2, 160000, dtype=torch.bool)
        for row in rows:
            if row["mixture"] == item.name:
                start, end = (round(8000 * float(row[key])) for key in ("start_s", "end_s"))
                spoken[int(row["track"][1]) - 1, start:end] = True
        assert not item.sources[~spoken].any()
        assert (item.sources[spoken] != 0).float().mean() > 0.9
        both, either = (spoken.sum(0) > 1).sum(), (spoken.sum(0) > 0).sum()
        assert both / either == pytest.approx(0.3, abs=0.05)


@pytest.mark.slow
def test_the_number_of_workers_changes_no_byte(speech, noise, tmp_path):
    plans = plan_mixtures(read_utterances(speech), 4, seed=2)
    for n_threads in (1, 3):
        config = SetConfig(noise=noise, reverberant=True, decay_seconds=(0.2, 0.22))
        make_set(plans, tmp_path / f"{n_threads}/set", config, n_threads=n_threads)
    make_set(plans, tmp_path / "other", SetConfig(noise=noise, seed=1), n_threads=1)
    assert tree(tmp_path / "1/set") == tree(tmp_path / "3/set")
    assert tree(tmp_path / "other") != tree(tmp_path / "1/set")


def test_noise_and_rooms_leave_the_dry_talkers_as_they_are(speech, noise, tmp_path):
    plans = plan_mixtures(read_utterances(speech), 2, seed=2)
    for name, config in (("plain", SetConfig()), ("noisy", SetConfig(noise=noise))):
        make_set(plans, tmp_path / name, config, n_threads=1)
    assert tree(tmp_path / "plain/s1") == tree(tmp_path / "noisy/s1")


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_and_ends_in_the_same_bytes(speech, noise, tmp_path):
    """Stopped by an interrupt, then in the next run by a kill."""
    folder, n_mixtures = tmp_path / "stopped", 40
    options = ["--kind", "set", "--count", str(n_mixtures), "--noise", noise, "--seed", "3", "--workers", "1"]
    changed, n_done = {}, 0
    for number, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        n_wanted = n_done + 3
        process = start_command("mixtures", speech, *options, "--out", folder)
        try:
            deadline = time.monotonic() + 120
            while len(list(folder.glob(".done/*.json"))) < n_wanted:
                assert process.exitcode is None
                assert time.monotonic() < deadline
                time.sleep(0.002)
        finally:
            os.kill(process.pid, number)
            process.join()
        assert process.exitcode == code
        before, changed = changed, {path: path.stat().st_mtime_ns for path in folder.glob("s1/*.wav")}
        assert len(before.items() & changed.items()) >= n_done  # they were not made again
        n_done = len(list(folder.glob(".done/*.json")))
        assert n_wanted <= n_done < n_mixtures
        assert not list(folder.glob("*.csv"))
    (folder / ".growing-0").mkdir()
    (folder / ".growing-0/7-s1.wav").write_bytes(b"half")  # as a kill within a file leaves it

    plans = plan_mixtures(read_utterances(speech), n_mixtures, seed=3)
    for name in ("stopped", "whole"):
        make_set(plans, tmp_path / name, SetConfig(noise=noise, seed=3), n_threads=2)
    assert tree(folder) == tree(tmp_path / "whole")
    kept = [path for path, moment in changed.items() if path.stat().st_mtime_ns == moment]
    assert len(kept) >= n_done


def test_a_complete_set_is_not_made_again(speech, tmp_path):
    plans = plan_mixtures(read_utterances(speech), 2, seed=2)
    first = make_set(plans, tmp_path / "set", SetConfig(), n_threads=1)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}
    assert make_set(plans, tmp_path / "set", SetConfig(), n_threads=1) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")} == before


def test_a_folder_of_something_else_is_not_touched(speech, tmp_path):
    utterances = read_utterances(speech)
    plans = plan_mixtures(utterances, 2, seed=2)
    make_set(plans, tmp_path / "set", SetConfig(), n_threads=1)
    before = tree(tmp_path / "set")
    for other, config in ((plans, SetConfig(seed=1)), (plan_mixtures(utterances, 2, seed=3), SetConfig())):
        with pytest.raises(ValueError, match="holds a set with other settings"):
            make_set(other, tmp_path / "set", config, n_threads=1)
    assert tree(tmp_path / "set") == before
    with pytest.raises(ValueError, match="is not empty and holds no set"):
        make_set(plans, speech, SetConfig(), n_threads=1)


def test_silent_and_unreadable_recordings_cost_their_mixtures_only(speech, tmp_path):
    soundfile.write(speech / "0/0-0.wav", np.zeros(RATE), RATE)
    plans = plan_mixtures(read_utterances(speech), 12, seed=2)
    silent = [p.name for p in plans if any(t.utterance.path.stem == "0-0" for t in p.turns)]
    assert 0 < len(silent) < 12
    (manifest,), failures = make_set(plans, tmp_path / "set", SetConfig(), n_threads=2)
    assert [name for name, _ in failures] == silent
    assert "0-0.wav is silent, or below -70 LUFS" in failures[0][1]
    assert len(open_mixtures(manifest, 8000)) == 12 - len(silent)

    voice = 0.1 * np.random.default_rng(0).standard_normal(RATE)
    soundfile.write(speech / "0/0-0.wav", voice, RATE, "FLOAT")  # mended: the same command makes the rest
    (manifest,), failures = make_set(plans, tmp_path / "set", SetConfig(), n_threads=2)
    assert failures == []
    assert len(open_mixtures(manifest, 8000)) == 12


def test_a_set_that_failed_whole_is_not_complete(speech, tmp_path):
    plans = plan_mixtures(read_utterances(speech), 1, seed=2)
    path = plans[0].turns[0].utterance.path
    whole = path.read_bytes()
    path.write_bytes(b"")
    manifests, failures = make_set(plans, tmp_path / "set", SetConfig(), n_threads=1)
    assert (manifests, len(failures)) == ([], 1)
    path.write_bytes(whole)
    assert make_set(plans, tmp_path / "set", SetConfig())[1] == []


def test_a_talker_who_never_comes_to_speak_has_a_silent_track(speech, tmp_path):
    utterances = [item for item in read_utterances(speech) if item.speaker in "01"]
    plan = plan_conversations(utterances, 1, seed=0, seconds=10.0)[0]
    alone = replace(plan, turns=tuple(turn for turn in plan.turns if turn.talker == 0))
    (manifest,), failures = make_set([alone], tmp_path / "set", SetConfig())
    assert failures == []
    (item,) = open_mixtures(manifest, 8000)
    assert item.sources[0].any()
    assert not item.sources[1].any()


def test_a_full_disk_stops_the_set_and_leaves_no_half_file(speech, tmp_path):
    plans = plan_mixtures(read_utterances(speech), 30, seed=2)
    folder = tmp_path / "small"
    folder.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", folder]).returncode
    ):
        pytest.skip("needs the right to mount a small disk")
    try:
        with pytest.raises(OSError, match="No space left"):
            make_set(plans, folder / "set", SetConfig(), n_threads=1)
        assert not list(folder.glob("set/*/.flasepformer-*"))
        for path in folder.glob("set/*/*.wav"):
            assert soundfile.info(path).frames >= 8000
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_the_size_is_estimated(speech, noise, tmp_path):
    plans = plan_mixtures(read_utterances(speech), 4, seed=2)
    for config in (
        SetConfig(),
        SetConfig(noise=noise, mode="max"),
        SetConfig(reverberant=True, decay_seconds=(0.2, 0.21)),
    ):
        name = tmp_path / str(hash(config))
        make_set(plans, name, config, n_threads=2)
        size = sum(path.stat().st_size for path in name.rglob("*.wav"))
        assert estimated_bytes(plans, config) == pytest.approx(size, rel=0.05)


def test_three_talkers_and_the_names_of_files(speech, tmp_path):
    plans = plan_mixtures(read_utterances(speech), 3, seed=2, n_sources=3)
    (manifest,), _ = make_set(plans, tmp_path / "set", SetConfig(), n_threads=1)
    assert open_mixtures(manifest, 8000).n_sources == 3
    assert (tmp_path / "set/s3" / f"{plans[0].name}.wav").exists()
    assert plans[0].name.count("_") == 3
    assert json.loads((tmp_path / "set/settings.json").read_text())["n_mixtures"] == 3


@pytest.mark.parametrize(
    "wrong", [{"sample_rate": 0}, {"loudness_lufs": (-20, -30)}, {"decay_seconds": (1, 0)}]
)
def test_a_config_that_cannot_be_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SetConfig(**wrong)
