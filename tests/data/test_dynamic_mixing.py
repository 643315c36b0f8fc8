import itertools

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from flasepformer.data import DynamicMixing, DynamicMixingConfig, SpeechStore, read_utterances
from flasepformer.data.dynamic_mixing import draw_turns

FREQUENCIES = {"a": 400, "b": 700, "c": 1000, "d": 1300}  # Hz
AS_RECORDED = {"speed_range": (1.0, 1.0), "gain_range_db": (0.0, 0.0)}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Four speakers of three utterances each: 0.3, 0.6 and 1.5 s of their own tone."""
    root = tmp_path_factory.mktemp("speech")
    for speaker, frequency in FREQUENCIES.items():
        (root / speaker).mkdir()
        for seconds in (0.3, 0.6, 1.5):
            tone = 0.5 * np.sin(2 * np.pi * frequency * np.arange(int(8000 * seconds)) / 8000)
            soundfile.write(root / speaker / f"{seconds}.wav", tone, 8000, "FLOAT")
    return SpeechStore.load(read_utterances(root), 8000)


def mixing(store, seed=7, **config):
    return DynamicMixing(store, DynamicMixingConfig(**{"segment_seconds": 1.0, **config}), seed)


def peak_frequency(waveform):
    """Return Hz; the waveforms here last a second."""
    return int(torch.fft.rfft(waveform).abs().argmax())


@given(index=st.integers(0, 10**9), seed=st.integers(0, 2**31), n_sources=st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_the_mixture_is_the_sum_of_different_speakers_and_does_not_clip(store, index, seed, n_sources):
    mixture, sources = mixing(store, seed, n_sources=n_sources, level_db=-10.0).example(index)
    assert torch.equal(mixture, sources.sum(0))
    assert sources.shape == (n_sources, 8000)
    assert mixture.abs().max() <= 0.9 + 1e-6
    heard = {min(FREQUENCIES.values(), key=lambda f: abs(f - peak_frequency(s))) for s in sources}
    assert len(heard) == n_sources


def test_an_example_depends_on_seed_and_index_only(store):
    first = mixing(store).example(5)
    later = mixing(store)
    for index in (9, 1):
        later.example(index)
    assert_close(later.example(5), first, rtol=0, atol=0)
    batch = next(mixing(store).batches(4, 2))
    assert_close((batch[0][1], batch[1][1]), first, rtol=0, atol=0)
    assert not torch.equal(mixing(store).example(6)[0], first[0])
    assert not torch.equal(mixing(store, seed=8).example(5)[0], first[0])


def test_batches_follow_each_other_without_gap(store):
    batches = mixing(store).batches(10, 3)
    next(batches)
    assert_close(next(batches), mixing(store).batch(13, 3), rtol=0, atol=0)


def test_gains_spread_over_their_range_about_the_level(store):
    config = {"speed_range": (1.0, 1.0), "gain_range_db": (-2.5, 2.5), "pause_seconds": (0.0, 0.0)}
    _, sources = mixing(store, min_filled=1.0, **config).batch(0, 100)
    gains_db = 20 * sources.square().mean(-1).sqrt().log10() + 26  # every source is a gapless tone of RMS 1
    assert gains_db.min() == pytest.approx(-2.5, abs=0.15)
    assert gains_db.max() == pytest.approx(2.5, abs=0.15)
    assert gains_db.mean() == pytest.approx(0, abs=0.3)


def test_speed_changes_the_pitch_and_not_the_length(store):
    mixture, sources = mixing(store, n_sources=1, speed_range=(1.05, 1.05)).example(0)
    assert len(mixture) == 8000
    assert peak_frequency(sources[0]) / 1.05 == pytest.approx(
        min(FREQUENCIES.values(), key=lambda f: abs(f * 1.05 - peak_frequency(sources[0]))), abs=2
    )


def test_speed_change_is_band_limited(store):
    """A steady tone stays one: what the resampler adds is 60 dB below it."""
    speeds = {"speed_range": (0.97, 0.97), "gain_range_db": (0.0, 0.0), "pause_seconds": (0.0, 0.0)}
    for index in range(20):
        source = mixing(store, n_sources=1, segment_seconds=0.25, **speeds).example(index)[1][0, 200:-200]
        k = np.arange(len(source))
        frequency = 0.97 * min(
            FREQUENCIES.values(), key=lambda f: abs(0.97 * f - np.abs(np.fft.rfft(source, 8000)).argmax())
        )
        basis = np.stack([f(2 * np.pi * frequency / 8000 * k) for f in (np.sin, np.cos)], axis=1)
        fit, *_ = np.linalg.lstsq(basis, source.numpy().astype(float), rcond=None)
        residual = source.numpy() - basis @ fit
        assert 10 * np.log10(np.mean(residual**2) / np.mean(source.numpy() ** 2)) < -60


def test_short_utterances_fill_the_segment_at_least_to_the_share(store):
    config = {**AS_RECORDED, "segment_seconds": 1.2, "fill_probability": 0.5, "pause_seconds": (0.1, 0.1)}
    _, sources = mixing(store, **config).batch(0, 100)
    silent = sources.unfold(-1, 80, 80).abs().amax(-1) == 0  # 10 ms at a time
    silent_seconds = silent.sum(-1) / 100
    assert silent_seconds.max() == pytest.approx(0.3, abs=0.03)  # 0.3 + 0.1 (pause) + 0.6 of 1.2 s: 0.2 left
    assert silent_seconds.min() == 0  # a crop of 1.5 s


def test_who_said_too_little_says_it_again(tmp_path, write_tone):
    for speaker in "ab":
        write_tone(tmp_path / speaker / "1.wav", 500, 0.3)
    store = SpeechStore.load(read_utterances(tmp_path), 8000)
    _, sources = mixing(store, **AS_RECORDED, pause_seconds=(0.0, 0.0)).batch(0, 20)
    assert ((sources != 0).float().mean(-1) > 0.74).all()


def test_speaker_balance_weighs_the_amount_of_speech(tmp_path, write_tone):
    write_tone(tmp_path / "much/1.wav", 400, 9.0)
    write_tone(tmp_path / "little/1.wav", 700, 1.0)
    store = SpeechStore.load(read_utterances(tmp_path), 8000)
    for balance, share in ((0.0, 0.9), (0.5, 0.75), (1.0, 0.5)):
        examples = mixing(store, n_sources=1, speed_range=(1.0, 1.0), speaker_balance=balance)
        heard = [peak_frequency(examples.example(i)[0]) for i in range(300)]
        assert heard.count(400) / 300 == pytest.approx(share, abs=0.08)


def test_a_silent_crop_is_drawn_again(tmp_path):
    for speaker in "ab":
        (tmp_path / speaker).mkdir()
        speech = np.zeros(80000)
        speech[:16000] = 0.5 * np.sin(np.arange(16000))
        soundfile.write(tmp_path / speaker / "1.wav", speech, 8000, "FLOAT")
    store = SpeechStore.load(read_utterances(tmp_path), 8000)
    _, sources = mixing(store, **AS_RECORDED).batch(0, 30)  # three crops of four would be silent
    assert sources.square().mean(-1).min() > 10 ** ((-26 - 50) / 10)


def test_a_set_of_nothing_but_silence_is_an_error_and_no_endless_loop(tmp_path):
    for speaker in "ab":
        (tmp_path / speaker).mkdir()
        click = np.zeros(2_000_000, dtype="float32")
        click[0] = 0.5
        soundfile.write(tmp_path / speaker / "1.wav", click, 8000, "FLOAT")
    with pytest.raises(ValueError, match="100 draws in a row fell below -50"):
        mixing(SpeechStore.load(read_utterances(tmp_path), 8000)).example(0)


def test_too_few_speakers_are_refused(store):
    with pytest.raises(ValueError, match="mixtures of 5 need as many speakers, got 4"):
        mixing(store, n_sources=5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_sources": 0},
        {"segment_seconds": 0},
        {"gain_range_db": (1, -1)},
        {"min_filled": 2},
        {"speed_range": (0, 1)},
    ],
)
def test_a_config_that_cannot_be_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DynamicMixingConfig(**wrong)


def test_without_surroundings_the_mixtures_of_earlier_versions_come_back(store):
    """Recipes of before these options existed train on the same bits; the values are of that time."""
    for config, values, levels in (
        (
            {"speed_range": (1.0, 1.0)},
            [0.0011988, 0.0780954, 0.140863, -0.1021563],
            [0.0577983, 0.0361331, 0.0488335, 0.0389804],
        ),
        ({}, [-0.0091197, 0.0345246, 0.131485, 0.0037295], [0.0577975, 0.0361778, 0.0488503, 0.0389395]),
        (
            {"n_sources": 3, "level_db": -10.0},
            [-0.290559, -0.1719414, -0.3038183, -0.3101579],
            [0.214869, 0.1897523, 0.196115, 0.203984],
        ),
    ):
        mixtures, sources = mixing(store, seed=0, **config).batch(0, 4)
        assert mixtures[:, 4000].tolist() == pytest.approx(values, abs=2e-7)
        assert sources.square().mean((1, 2)).sqrt().tolist() == pytest.approx(levels, abs=2e-7)


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory):
    """Two rooms, each with an early and a late echo, and noise."""
    root = tmp_path_factory.mktemp("surroundings")
    for folder in ("rooms", "noise"):
        (root / folder).mkdir()
    for name, late in (("a", 1600), ("b", 2400)):
        response = np.zeros(3000)
        response[[20, 20 + 160, 20 + late]] = 0.5, 0.2, 0.1
        soundfile.write(root / "rooms" / f"{name}.wav", response, 8000, "FLOAT")
    rng = np.random.default_rng(0)
    for name in "ab":
        soundfile.write(root / "noise" / f"{name}.wav", 0.1 * rng.standard_normal(9000), 8000, "FLOAT")
    return {"rooms": str(root / "rooms"), "noise": (str(root / "noise"),)}


def ratio_db(signal, rest):
    return 10 * float(torch.log10(signal.square().mean() / rest.square().mean()))


def test_noise_lies_below_the_talkers_by_the_level_drawn(store, surroundings):
    noisy = mixing(store, noise=surroundings["noise"], noise_snr_db=(3.0, 9.0))
    ratios = []
    for index in range(40):
        mixture, sources = noisy.example(index)
        ratios.append(ratio_db(sources.sum(0), mixture - sources.sum(0)))
        _, clean = mixing(store).example(index)  # the talkers do not change
        assert_close(sources / sources.abs().max(), clean / clean.abs().max(), rtol=1e-4, atol=1e-6)
    assert 3 <= min(ratios) < 4
    assert 8 < max(ratios) <= 9
    seldom = mixing(store, noise=surroundings["noise"], noise_probability=0.25)
    quiet = [torch.equal(m, s.sum(0)) for m, s in map(seldom.example, range(200))]
    assert sum(quiet) / 200 == pytest.approx(0.75, abs=0.1)


def test_all_talkers_are_in_one_room_and_the_target_is_dry(store, surroundings):
    delays = []
    for index in range(20):
        mixture, sources = mixing(store, rooms=surroundings["rooms"]).example(index)
        dry = sources.sum(0)
        for late in (1600, 2400):
            heard = dry.clone()
            heard[160:] += 0.4 * dry[:-160]
            heard[late:] += 0.2 * dry[:-late]
            if torch.allclose(heard, mixture, atol=1e-5):
                delays.append(late)
    assert len(delays) == 20
    assert set(delays) == {1600, 2400}


def test_a_room_leaves_the_talkers_at_their_level(store, surroundings):
    for index in range(10):
        heard, _ = mixing(store, n_sources=1, rooms=surroundings["rooms"]).example(index)
        plain, _ = mixing(store, n_sources=1).example(index)
        assert heard.square().mean() / plain.square().mean() == pytest.approx(1, abs=1e-3)


def test_the_target_may_hold_the_early_reflections(store, surroundings):
    config = {"rooms": surroundings["rooms"], **AS_RECORDED}
    for index in range(5):
        _, dry = mixing(store, **config).example(index)
        mixture, early = mixing(store, room_target="early", **config).example(index)
        expected = dry.clone()
        expected[:, 160:] += 0.4 * dry[:, :-160]
        assert_close(early / early.abs().max(), expected / expected.abs().max(), rtol=1e-3, atol=1e-5)
        assert ratio_db(early.sum(0), mixture - early.sum(0)) > 10  # the late echo is 14 dB below


def test_band_limits_take_all_of_the_mixture_and_the_sources(store, surroundings):
    config = {"band_limit_probability": 0.5, "band_limit_hz": (800.0, 800.0), "n_sources": 4}
    limited = {True: 0, False: 0}
    noisy = mixing(store, noise=surroundings["noise"], noise_snr_db=(0.0, 0.0), **config)
    for index in range(40):
        mixture, sources = noisy.example(index)
        energy = torch.fft.rfft(torch.stack([mixture, sources.sum(0)])).abs().square()
        above = energy[:, 900:].sum(1) < 1e-3 * energy.sum(1)
        assert above[0] == above[1]  # the noise above the limit goes with the talkers
        limited[bool(above[0])] += 1
    assert min(limited.values()) >= 10


def test_equalisation_keeps_the_levels_and_the_sum(store):
    for index in range(10):
        _, plain = mixing(store).example(index)
        mixture, coloured = mixing(store, equalization_db=6.0).example(index)
        assert_close(mixture, coloured.sum(0))
        assert_close(coloured.square().mean(1), plain.square().mean(1), rtol=1e-3, atol=0)
        assert not torch.equal(coloured, plain)


@pytest.mark.slow
def test_talkers_are_alone_as_often_as_asked_for(store, surroundings):
    alone = mixing(store, absent_probability=0.3, **surroundings)
    n_alone, speaking = 0, set()
    for index in range(200):
        mixture, sources = alone.example(index)
        assert mixture.isfinite().all()
        present = sources.abs().amax(1) > 0
        if not present.all():
            n_alone += 1
            assert present.sum() == 1
            speaking.add(int(present.int().argmax()))
    assert n_alone / 200 == pytest.approx(0.3, abs=0.08)
    assert speaking == {0, 1}


def test_rooms_and_noise_that_are_never_drawn_are_not_made_ready(store, monkeypatch):
    monkeypatch.setattr("flasepformer.data.dynamic_mixing.simulate_rooms", None)
    settings = AS_RECORDED | {"rooms": "simulated", "room_probability": 0.0, "noise": ["no/such/folder"],
                              "noise_probability": 0.0}  # fmt: skip
    mixture, sources = DynamicMixing(store, DynamicMixingConfig(**settings), 0).example(0)
    torch.testing.assert_close(mixture, sources.sum(0))


def test_rooms_are_simulated_and_the_same_for_the_same_seed(store):
    config = {"rooms": "simulated", "n_simulated_rooms": 2, "decay_seconds": (0.2, 0.3), **AS_RECORDED}
    mixture, sources = mixing(store, **config).example(0)
    again, _ = mixing(store, **config).example(0)
    assert torch.equal(mixture, again)
    _, dry = mixing(store, **AS_RECORDED).example(0)
    for heard, spoken in zip(sources, dry, strict=True):
        assert_close(heard / heard.abs().max(), spoken / spoken.abs().max(), rtol=1e-3, atol=1e-5)
    assert 0 < ratio_db(sources.sum(0), mixture - sources.sum(0)) < 25
    assert not torch.equal(mixing(store, seed=8, **config).example(0)[0], mixture)


class Table(torch.utils.data.Dataset):
    def __init__(self, examples):
        self.examples = examples

    def __getitem__(self, index):
        return self.examples.example(index)


@pytest.mark.parametrize("n_workers", [1, 2])
def test_workers_make_the_same_mixtures(store, surroundings, n_workers):
    everything = mixing(
        store, **surroundings, equalization_db=6.0, band_limit_probability=0.5, speed_range=(0.8, 1.25),
        room_target="early", noise_probability=0.5,
    )  # fmt: skip
    batches = [[0, 1], [2, 3], [4, 5]]
    loader = torch.utils.data.DataLoader(Table(everything), batch_sampler=batches, num_workers=n_workers)
    for (mixtures, sources), first in zip(loader, (0, 2, 4), strict=True):
        assert_close((mixtures, sources), everything.batch(first, 2), rtol=0, atol=0)


@pytest.mark.parametrize(
    "wrong",
    [{"noise_probability": 2}, {"noise_snr_db": (5, 0)}, {"band_limit_hz": (0, 1)}, {"equalization_db": -1},
     {"absent_probability": -1}, {"noise": "folder"}, {"n_simulated_rooms": 0}, {"decay_seconds": (2, 1)}],
)  # fmt: skip
def test_surroundings_that_cannot_be_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DynamicMixingConfig(**wrong)


def test_a_folder_without_rooms_or_noise_is_refused(store, tmp_path):
    with pytest.raises(ValueError, match="no room responses in"):
        mixing(store, rooms=str(tmp_path))
    with pytest.raises(ValueError, match="no recordings of noise in"):
        mixing(store, noise=(str(tmp_path),))


def conversing(store, **config):
    usual = {**AS_RECORDED, "conversation_probability": 1.0, "long_conversation_probability": 1.0}
    return mixing(store, **{**usual, **config})


def test_turns_never_overlap_where_none_may_and_keep_their_lengths_and_pauses():
    config = DynamicMixingConfig(
        turn_seconds=(0.5, 2.0), turn_pause_seconds=(0.25, 1.0), turn_overlap_probability=0.0
    )
    for seed in range(50):
        turns = draw_turns(np.random.default_rng(seed), 20 * 8000, 8000, config)
        assert turns
        whole = [turn for turn in turns if turn.start > 0 and turn.stop < 20 * 8000]
        lengths = [(turn.stop - turn.start) / 8000 for turn in whole]
        assert min(lengths) >= 0.5 - 1e-3
        assert max(lengths) <= 2.0 + 1e-3
        pauses = [(b.start - a.stop) / 8000 for a, b in itertools.pairwise(turns)]
        assert min(pauses) >= 0.25 - 1e-3
        assert max(pauses) <= 1.0 + 1e-3


def test_conversations_overlap_from_not_at_all_to_much_and_nobody_interrupts_himself():
    config, shares = DynamicMixingConfig(turn_overlap_probability=1.0), []
    for seed in range(200):
        speaking = np.zeros((2, 20 * 8000), dtype=int)
        for turn in draw_turns(np.random.default_rng(seed), 20 * 8000, 8000, config):
            speaking[turn.talker, turn.start : turn.stop] += 1
        assert speaking.max() <= 1
        shares.append((speaking.sum(0) == 2).sum() / (speaking.sum(0) > 0).sum())
    assert min(shares) == 0
    assert max(shares) > 0.4


def test_each_talker_of_a_conversation_has_one_voice_in_all_turns(store):
    examples = conversing(
        store, turn_seconds=(0.5, 0.5), turn_pause_seconds=(0.1, 0.2), turn_overlap_probability=0.0
    )
    mixture, sources = examples.example(3, seconds=6.0)
    assert sources.shape == (2, 48_000)
    assert torch.equal(mixture, sources.sum(0))
    assert (sources != 0).all(0).sum() == 0  # one at a time
    voices = []
    for source in sources:
        spectrum = np.abs(np.fft.rfft(source.numpy()))
        voices.append(round(int(spectrum.argmax()) / 6.0 / 100) * 100)
        frequencies = np.fft.rfftfreq(48_000, 1 / 8000)
        own = np.abs(frequencies - voices[-1]) < 100
        assert (spectrum[own] ** 2).sum() / (spectrum**2).sum() > 0.9
    assert voices[0] != voices[1]
    assert set(voices) <= set(FREQUENCIES.values())


def test_a_segment_of_another_length_depends_on_seed_index_and_length_only(store):
    first = conversing(store).example(5, seconds=3.0)
    later = conversing(store)
    later.example(5)
    assert_close(later.example(5, seconds=3.0), first, rtol=0, atol=0)
    assert first[0].shape == (24_000,)


def test_no_conversation_is_wholly_silent(store):
    examples = conversing(store, turn_pause_seconds=(5.0, 10.0), absent_probability=0.5)
    assert min(examples.example(index)[0].abs().max().item() for index in range(100)) > 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"turn_seconds": (0.0, 1.0)}, "turn_seconds must be positive"),
        ({"turn_seconds": (2.0, 1.0)}, "turn_seconds must run from low to high"),
        ({"turn_pause_seconds": (-1.0, 1.0)}, "turn_pause_seconds must not be negative"),
        ({"conversation_probability": 1.5}, "conversation_probability must lie within 0 to 1"),
    ],
)
def test_conversations_that_cannot_be_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        DynamicMixingConfig(**config)
