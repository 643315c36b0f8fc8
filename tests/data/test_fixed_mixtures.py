from collections import Counter

import numpy as np
import pytest
import soundfile
import torch
from torch.testing import assert_close

from flasepformer.data import FixedMixtures, MixtureFiles


@pytest.fixture
def files(tmp_path):
    """Four mixtures of 1000 samples; the sample `t` of source `s` of mixture `m` tells m, s and t."""
    items = []
    for m in range(4):
        sources = [(m + 1) * 1e-1 + (s + 1) * 1e-2 + np.arange(1000) * 1e-6 for s in range(2)]
        for name, waveform in (("s1", sources[0]), ("s2", sources[1]), ("mix", sum(sources) + 0.001)):
            (tmp_path / name).mkdir(exist_ok=True)
            soundfile.write(tmp_path / name / f"{m}.wav", waveform, 8000, "FLOAT")
        tracks = [tmp_path / track / f"{m}.wav" for track in ("mix", "s1", "s2")]
        items.append(MixtureFiles(str(m), tracks[0], tuple(tracks[1:]), ("a", "b"), ("x", "y"), 1000, 8000))
    return items


def which(sources):
    return round(float(sources[0, 0]) * 10) - 1


def test_each_epoch_has_every_mixture_once_in_another_order(files):
    examples = FixedMixtures(files, 0.05, seed=3)
    orders = [[which(examples.example(i)[1]) for i in range(4 * e, 4 * e + 4)] for e in range(5)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert len(set(map(tuple, orders))) > 1


def test_a_segment_is_cut_from_all_tracks_at_one_place(files):
    examples = FixedMixtures(files, 0.05, seed=3)
    starts = Counter()
    for index in range(40):
        mixture, sources = examples.example(index)
        assert (len(mixture), sources.shape, mixture.dtype) == (400, (2, 400), torch.float32)
        assert_close(mixture, sources.sum(0) + 0.001)
        m = which(sources)
        start = round((float(sources[0, 0]) - (m + 1) * 1e-1 - 1e-2) * 1e6)
        assert 0 <= start <= 600
        starts[start] += 1
    assert len(starts) > 30


def test_an_example_depends_on_seed_and_index_only(files):
    first = FixedMixtures(files, 0.05, seed=3).example(9)
    later = FixedMixtures(files, 0.05, seed=3)
    for index in (30, 2):
        later.example(index)
    assert_close(later.example(9), first, rtol=0, atol=0)
    assert not torch.equal(FixedMixtures(files, 0.05, seed=4).example(9)[0], first[0])


def test_short_mixtures_are_followed_by_silence_and_none_takes_the_whole(files):
    mixture, sources = FixedMixtures(files, 0.2, seed=3).example(0)
    assert sources.shape == (2, 1600)
    assert (sources[:, :1000] != 0).all()
    assert not sources[:, 1000:].any()
    mixture, sources = FixedMixtures(files, None, seed=3).example(0)
    assert_close(mixture, torch.from_numpy(soundfile.read(files[which(sources)].mixture, dtype="float32")[0]))


def test_a_segment_with_a_silent_source_is_cut_again(files):
    for item in files:
        waveform, _ = soundfile.read(item.sources[1])
        waveform[500:] = 0
        soundfile.write(item.sources[1], waveform, 8000, "FLOAT")
    examples = FixedMixtures(files, 0.025, seed=3)  # 200 of 1000 samples: three starts of eight are silent
    assert all(examples.example(index)[1][1].any() for index in range(50))


def test_a_corrupt_mixture_is_replaced_noted_and_limited(files):
    whole = files[2].sources[0].read_bytes()
    files[2].sources[0].write_bytes(whole[:2000])
    examples = FixedMixtures(files, 0.05, seed=3, max_corrupt_share=0.25)
    seen = Counter(which(examples.example(i)[1]) for i in range(4))
    assert sorted(seen) == [0, 1, 3]
    assert sum(seen.values()) == 4
    assert "its manifest says (1000, 8000, 1)" in examples.corrupt["2"]

    files[0].mixture.unlink()
    with pytest.raises(ValueError, match=r"2 of 4 mixtures are corrupt, more than 25%; .*0.wav"):
        [examples.example(i) for i in range(4)]


def test_the_caller_may_count_until_nothing_is_left(files):
    examples = FixedMixtures(files, 0.05, seed=3, max_corrupt_share=1.0)
    for item in files[:3]:
        item.sources[1].unlink()
    assert {which(examples.example(i)[1]) for i in range(8)} == {3}
    assert sorted(examples.corrupt) == ["0", "1", "2"]
    files[3].sources[1].unlink()
    with pytest.raises(ValueError, match=r"^all 4 mixtures are corrupt; .*wav"):
        examples.example(0)


def test_nan_samples_are_corrupt(files):
    waveform, _ = soundfile.read(files[1].mixture)
    waveform[:] = np.nan
    soundfile.write(files[1].mixture, waveform, 8000, "FLOAT")
    with pytest.raises(ValueError, match=r"1 of 4 mixtures are corrupt, more than 1%.*not numbers"):
        [FixedMixtures(files, 0.05, seed=3).example(i) for i in range(4)]


def test_several_sample_rates_are_refused(files):
    other = MixtureFiles("x", files[0].mixture, files[0].sources, ("a", "b"), ("x", "y"), 1000, 16000)
    with pytest.raises(ValueError, match=r"need one sample rate, these have \[8000, 16000\] Hz"):
        FixedMixtures([*files, other], 1.0, seed=0)
