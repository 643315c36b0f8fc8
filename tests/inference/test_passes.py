"""Several passes over a recording come out as their mean, with every talker on one track."""

import json
import pickle
import shutil

import numpy as np
import pytest
import soundfile
import torch

from flasepformer.audio import StoredSignals, explaining_gains
from flasepformer.inference import Separator
from flasepformer.inference.estimates import signal_bytes
from flasepformer.inference.execution import ModelRunner
from flasepformer.inference.outputs import AlreadySeparated, OutputExists
from flasepformer.inference.passes import MAX_PASSES, Variant, blend, explain, variants
from flasepformer.models import SepReformer, SepReformerConfig, load_model, save_model

RATE = 8000


def stored(samples, folder=None):
    signals = StoredSignals(*samples.shape, folder)
    signals.write(0, samples)
    return signals


def talk(n_samples, seed=0):
    """Two unlike signals, (2, time)."""
    return np.random.default_rng(seed).standard_normal((2, n_samples)).astype(np.float32)


def test_the_first_pass_hears_the_recording_and_every_other_something_else():
    assert variants(1, RATE) == [Variant()]
    assert len({*variants(MAX_PASSES, RATE)}) == MAX_PASSES
    for n_passes in (0, MAX_PASSES + 1):
        with pytest.raises(ValueError, match=f"passes must be from 1 to {MAX_PASSES}, got {n_passes}"):
            variants(n_passes, RATE)


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("variant", variants(MAX_PASSES, RATE))
def test_a_changed_recording_is_read_anywhere(variant, on_disk, tmp_path):
    samples = talk(1000)[:1]
    changed = variant.of(stored(samples, tmp_path if on_disk else None))
    whole = variant.sign * np.pad(samples, ((0, 0), (variant.shift, 0)))
    assert changed.n_samples == whole.shape[1]
    for first, last in ((0, 1000 + variant.shift), (0, 10), (250, 270), (500, 520), (990, 1000)):
        assert np.array_equal(changed.read(first, last), whole[:, first:last])


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("n_samples", [1, RATE // 2, 3 * RATE + 7])
def test_a_pass_that_gives_the_same_changes_nothing_whatever_the_order_of_its_tracks(
    n_samples, on_disk, tmp_path
):
    sources, folder = talk(n_samples), tmp_path if on_disk else None
    mean = stored(sources, folder)
    for number, variant in enumerate(variants(4, RATE)[1:], start=1):
        same = variant.sign * np.pad(sources[::-1], ((0, 0), (variant.shift, 0)))
        blend(mean, stored(same, folder), variant, 1 / (number + 1), RATE)
    assert mean.read(0, n_samples) == pytest.approx(sources, abs=1e-6)


def test_a_pass_that_changes_its_mind_does_not_mix_the_talkers():
    sources = talk(8 * RATE)
    turned = np.concatenate([sources[:, : 4 * RATE], sources[::-1, 4 * RATE :]], axis=1)
    mean = stored(sources)
    blend(mean, stored(turned), Variant(), 0.5, RATE)
    found = mean.read(0, 8 * RATE)
    for first, last in ((0, 3 * RATE), (5 * RATE, 8 * RATE)):  # all but the second around the change
        assert found[:, first:last] == pytest.approx(sources[:, first:last], abs=1e-6)


def test_the_mean_has_the_same_share_of_every_pass():
    sources, noise = talk(RATE), talk(RATE, 1)
    mean = stored(sources)
    for number in (1, 2):
        blend(mean, stored(sources + 0.3 * noise), Variant(), 1 / (number + 1), RATE)
    assert mean.read(0, RATE) == pytest.approx(sources + 0.2 * noise, abs=1e-5)


def test_silence_stays_silence():
    mean = stored(np.zeros((2, RATE), np.float32))
    blend(mean, stored(np.zeros((2, RATE + 504), np.float32)), Variant(504, -1), 0.5, RATE)
    assert not mean.read(0, RATE).any()


@pytest.mark.parametrize("mode", ["whole", "chunks"])
def test_a_runner_gives_the_mean_of_what_the_network_makes_of_each_variant(separator, voices, mode):
    samples = voices(RATE // 2)[None]  # so short that one order of the tracks holds for all of it
    runner = ModelRunner(separator.model, "cpu", mode=mode, passes=3)
    told = []
    passage = runner.run(stored(samples), runner.plan(RATE // 2), progress=told.append)
    expected, first = np.zeros((2, RATE // 2)), None
    for number, variant in enumerate(variants(3, RATE)):
        changed = variant.sign * np.pad(samples, ((0, 0), (variant.shift, 0)))
        with torch.no_grad():
            estimates = separator.model(torch.from_numpy(changed.astype(np.float32)))[0].numpy()
        estimates = variant.sign * estimates[:, variant.shift :]
        alike = (
            estimates[::-1]
            if (estimates[::-1] * expected).sum() > (estimates * expected).sum()
            else estimates
        )
        expected = (number * expected + alike) / (number + 1)
        first = estimates if first is None else first
    found = passage.estimates.read(0, RATE // 2)
    assert found == pytest.approx(expected, abs=1e-5)
    assert np.abs(found - first).max() > 1e-3
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)


def test_the_memory_of_a_second_pass_is_counted(separator):
    one, two = (
        ModelRunner(separator.model, "cpu", passes=passes).plan(8000 * 60).need.memory_bytes
        for passes in (1, 2)
    )
    assert two - one == signal_bytes(2, 8000 * 60, True) - signal_bytes(2, 8000 * 60) == 2 * 8000 * 60 * 4


def test_the_report_says_how_many_and_another_number_is_another_separation(model_folder, voices, tmp_path):
    soundfile.write(tmp_path / "talk.wav", voices(6000), RATE)
    once, twice = (Separator.from_pretrained(model_folder, "cpu", passes=passes) for passes in (1, 2))
    once.separate_file(tmp_path / "talk.wav", tmp_path / "out")
    path = tmp_path / "out" / "talk_separation.json"
    report = json.loads(path.read_text())
    assert report["options"].pop("passes") == 1
    path.write_text(json.dumps(report))  # as written before there was such an option
    with pytest.raises(AlreadySeparated):
        once.separate_file(tmp_path / "talk.wav", tmp_path / "out")
    with pytest.raises(OutputExists, match="another number of passes: 1, now 2"):
        twice.separate_file(tmp_path / "talk.wav", tmp_path / "out")
    again = twice.separate_file_with_report(tmp_path / "talk.wav", tmp_path / "out", overwrite=True)
    assert again.options["passes"] == 2


@pytest.fixture(scope="module")
def second_folder(tmp_path_factory):
    """A second model, unlike that of `model_folder`."""
    return random_model(tmp_path_factory.mktemp("second"))


def random_model(folder, **changes):
    torch.manual_seed(1)
    config = {
        "n_filters": 16,
        "n_channels": 8,
        "n_heads": 2,
        "n_stages": 1,
        "local_kernel_size": 5,
        **changes,
    }
    save_model(SepReformer(SepReformerConfig(**config)), folder)
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["whole", "chunks"])
def test_a_second_model_has_a_quarter_of_the_mean(separator, second_folder, voices, mode):
    samples = voices(RATE // 2)[None]
    runner = ModelRunner(separator.model, "cpu", mode=mode, also=second_folder)
    told = []
    passage = runner.run(stored(samples), runner.plan(RATE // 2), progress=told.append)
    with torch.no_grad():
        first, second = (
            explaining_gains(samples[0], found).astype(np.float32)[:, None] * found
            for model in (separator.model, load_model(second_folder))
            for found in [model(torch.from_numpy(samples))[0].numpy()]
        )
    if (first * second[::-1]).sum() > (first * second).sum():
        second = second[::-1]
    assert passage.estimates.read(0, RATE // 2) == pytest.approx(0.75 * first + 0.25 * second, abs=1e-5)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)


@pytest.mark.slow
def test_estimates_get_the_level_that_explains_the_mixture(voices):
    """Of two models one may be ten times as loud as the other, or upside down."""
    sources = np.stack([voices(RATE * 9), np.roll(voices(RATE * 9), RATE * 4)])
    estimates = stored(sources * np.float32([[10], [-0.1]]))
    explain(stored(sources.sum(0, keepdims=True)), estimates)
    assert estimates.read(0, RATE * 9) == pytest.approx(sources, abs=1e-4)


@pytest.mark.parametrize("memory", [None, "80M"])
def test_the_memory_of_a_second_model_is_counted_and_kept(separator, second_folder, voices, memory):
    """With little of it estimates lie on the disk, and are the same."""
    one, both = (
        ModelRunner(separator.model, "cpu", memory=memory, also=also).plan(RATE * 600)
        for also in (None, second_folder)
    )
    kept = 2 * RATE * 600 * 4
    assert both.also is not None
    assert both.signals_on_disk == one.signals_on_disk == (memory is not None)
    name = "disk_bytes" if memory else "memory_bytes"
    assert getattr(both.need, name) == max(
        getattr(one.need, name) + kept, getattr(both.also.need, name) + kept
    )


@pytest.mark.slow
def test_a_second_model_is_reported_and_another_one_is_another_separation(
    model_folder, second_folder, voices, tmp_path
):
    soundfile.write(tmp_path / "talk.wav", voices(6000), RATE)
    second_folder = str(shutil.copytree(second_folder, tmp_path / "second"))
    alone = Separator.from_pretrained(model_folder, "cpu")
    both = Separator.from_pretrained(model_folder, "cpu", also=second_folder)
    alone.separate_file(tmp_path / "talk.wav", tmp_path / "out")
    with pytest.raises(OutputExists, match="other weights"):
        both.separate_file(tmp_path / "talk.wav", tmp_path / "out")
    report = both.separate_file_with_report(tmp_path / "talk.wav", tmp_path / "out", overwrite=True)
    assert report.options["also"] == second_folder
    samples = voices(6000)
    expected = both.separate(samples, RATE)
    assert np.abs(expected - alone.separate(samples, RATE)).max() > 1e-4
    shutil.rmtree(second_folder)  # for a process that has no such folder, the second model comes along
    other = pickle.loads(pickle.dumps(both.alike({"also": second_folder, "memory": 10**9})))
    assert other.separate(samples, RATE) == pytest.approx(expected, abs=1e-6)
    assert other._run_options["also"] == second_folder


@pytest.mark.parametrize(
    ("changes", "what"), [({"sample_rate": 16000}, "sample_rate 8000"), ({"n_sources": 3}, "n_sources 2")]
)
def test_a_second_model_of_another_kind_is_refused(separator, tmp_path, changes, what):
    with pytest.raises(ValueError, match=f"also must be a model with {what}"):
        ModelRunner(separator.model, "cpu", also=random_model(tmp_path / "other", **changes))
