"""Chunks of a model whose answer is known: it tells two tones apart, and swaps their tracks at will."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flasepformer.audio import StoredSignals
from flasepformer.inference.chunks import DOUBTFUL_MARGIN, _fade_in, plan_chunks
from flasepformer.inference.chunks import separate_in_chunks as separate_signals

RATE = 1000


def tone(frequency, n_samples):
    return np.sin(2 * np.pi * frequency * np.arange(n_samples) / RATE + 0.3).astype(np.float32)


def stored(samples, folder=None):
    signals = StoredSignals(*np.atleast_2d(samples).shape, folder)
    signals.write(0, np.atleast_2d(samples).astype(np.float32))
    return signals


def separate_in_chunks(model, mixture, n_sources, chunk_length, overlap, folder=None, **options):
    tracks = StoredSignals(n_sources, len(mixture), folder)
    joins = separate_signals(model, stored(mixture, folder), tracks, chunk_length, overlap, **options)
    return tracks.read(0, len(mixture)), joins


class ToneSeparator:
    """Split at 200 Hz; the order and the scale of the tracks change from call to call."""

    def __init__(self, orders=(False, True, True, False), scales=(1.0, 3.0, -0.5)):
        self.orders, self.scales = orders, scales
        self.n_calls = 0

    def __call__(self, mixture):
        spectrum = np.fft.rfft(mixture)
        low = np.arange(len(spectrum)) * RATE / len(mixture) < 200
        estimates = np.stack([np.fft.irfft(spectrum * part, len(mixture)) for part in (low, ~low)])
        flip = self.orders[self.n_calls % len(self.orders)]
        scale = self.scales[self.n_calls % len(self.scales)]
        self.n_calls += 1
        return (scale * estimates[::-1] if flip else scale * estimates).astype(np.float32)


@settings(deadline=None)
@given(n_samples=st.integers(1, 5000), chunk_length=st.integers(2, 600), data=st.data())
def test_chunks_cover_the_recording_with_the_overlap_and_none_is_idle(n_samples, chunk_length, data):
    overlap = data.draw(st.integers(1, chunk_length // 2))
    starts = plan_chunks(n_samples, chunk_length, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(0, n_samples - chunk_length)
    steps = np.diff(starts)
    assert (steps <= chunk_length - overlap).all()
    assert (steps > 0).all()
    assert len(starts) == 1 + -(-max(0, n_samples - chunk_length) // (chunk_length - overlap))


@pytest.mark.parametrize("n_samples", [1001, 1500, 3000, 4321])
def test_every_talker_stays_in_one_track_however_the_model_orders_them(n_samples):
    talkers = np.stack([tone(50, n_samples), 0.5 * tone(350, n_samples)])
    tracks, joins = separate_in_chunks(ToneSeparator(), talkers.sum(0), 2, 1000, 200)
    assert tracks.shape == (2, n_samples)
    assert len(joins) == len(plan_chunks(n_samples, 1000, 200)) - 1
    assert min(join.margin for join in joins) > 0.9
    # The tones do not fit the chunks, so a little of each leaks; a swap would be an error as large as a tone.
    assert np.sqrt(np.square(tracks - talkers).mean(axis=1)).max() < 0.1


def test_a_recording_not_longer_than_a_chunk_is_the_whole_bit_by_bit():
    mixture = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    tracks, joins = separate_in_chunks(ToneSeparator(), mixture, 2, 1000, 200)
    assert tracks.tobytes() == ToneSeparator()(mixture).tobytes()
    assert joins == []


def test_the_fade_sums_to_one_exactly():
    mixture = np.random.default_rng(0).standard_normal(3777).astype(np.float32)

    def halves(chunk):  # the same at every place, whichever chunk it is in
        return np.stack([0.25 * chunk, 0.75 * chunk])

    tracks, joins = separate_in_chunks(halves, mixture, 2, 1000, 300)
    assert len(joins) == 4
    np.testing.assert_allclose(tracks.sum(0), mixture, rtol=1e-5)
    # Chunks that agree to the last bit leave no trace of the fade: the gain of these is exactly 1.
    apart = np.zeros((2, 4000), np.float32)
    apart[0, ::2], apart[1, 1::2] = 1, 0.5
    tracks, _ = separate_in_chunks(lambda chunk: _odd_and_even(chunk), apart.sum(0), 2, 1000, 250)
    np.testing.assert_array_equal(tracks, apart)


def _odd_and_even(chunk):
    return np.stack([np.where(chunk == 1, chunk, 0), np.where(chunk == 0.5, chunk, 0)])


def pausing(n_samples, pauses):
    """Two tones that are silent together in the pauses."""
    talkers = np.stack([tone(50, n_samples), tone(350, n_samples)])
    for start, stop in pauses:
        talkers[:, start:stop] = 0
    return talkers


def test_where_all_pause_a_chunk_across_the_join_decides():
    talkers = pausing(1800, [(750, 1050)])  # around the only overlap, 800 to 1000
    model = ToneSeparator(orders=(False, True, False), scales=(1.0,))
    tracks, (join,) = separate_in_chunks(model, talkers.sum(0), 2, 1000, 200, silence=1e-2)
    assert model.n_calls == 3
    assert join.sample == 900
    assert join.margin > 0.5
    assert np.sqrt(np.square(tracks - talkers).mean(axis=1)).max() < 0.1


def test_a_silence_longer_than_a_chunk_leaves_a_doubtful_join():
    talkers = pausing(5000, [(900, 3700)])
    tracks, joins = separate_in_chunks(ToneSeparator(), talkers.sum(0), 2, 1000, 200, silence=1e-2)
    assert [join.doubtful for join in joins].count(True) == 1
    (doubtful,) = [join for join in joins if join.doubtful]
    assert 3200 <= doubtful.sample <= 4000  # where they talk again
    assert not tracks[:, 1800:3200].any()  # the chunks that hold a word leak a little


def test_before_the_first_word_there_is_nothing_to_doubt():
    talkers = pausing(5000, [(0, 3700)])
    tracks, joins = separate_in_chunks(ToneSeparator(), talkers.sum(0), 2, 1000, 200, silence=1e-2)
    assert not any(join.doubtful for join in joins)
    assert not tracks[:, :3000].any()


def test_equal_tracks_are_doubtful_everywhere():
    mixture = tone(50, 3000)
    _, joins = separate_in_chunks(lambda chunk: np.stack([chunk, chunk]) / 2, mixture, 2, 1000, 200)
    assert [join.doubtful for join in joins] == [True] * 3
    assert max(join.margin for join in joins) == pytest.approx(0, abs=1e-6)


def test_one_talker_of_two_in_the_overlap_is_enough():
    talkers = np.stack([tone(50, 1800), tone(350, 1800)])
    talkers[1, 700:1100] = 0
    model = ToneSeparator(orders=(False, True), scales=(1.0,))
    tracks, (join,) = separate_in_chunks(model, talkers.sum(0), 2, 1000, 200, silence=1e-2)
    assert model.n_calls == 2  # without a chunk across
    assert join.margin > DOUBTFUL_MARGIN
    assert np.sqrt(np.square(tracks - talkers).mean(axis=1)).max() < 0.15


def test_progress_rises_to_one_chunk_by_chunk():
    told = []
    separate_in_chunks(ToneSeparator(), tone(50, 1801), 2, 1000, 200, progress=told.append)
    assert told == pytest.approx([1 / 3, 2 / 3, 1])


def test_the_fade_is_a_raised_cosine_in_the_middle_of_what_two_chunks_share():
    signals = StoredSignals(2, 160)
    _fade_in(signals, np.ones((2, 100), np.float32), start=60, stop=100, overlap=20)
    tracks = signals.read(0, 160)
    assert not tracks[:, :70].any()
    np.testing.assert_array_equal(tracks[:, 90:160], 1)
    fade = tracks[0, 70:90]
    np.testing.assert_allclose(fade + fade[::-1], 1, atol=1e-6)
    expected = 0.5 - 0.5 * np.cos(np.pi * np.arange(1, 21) / 21)
    np.testing.assert_allclose(fade, expected, atol=1e-6)


def test_chunks_that_lie_in_a_file_are_the_same_samples(tmp_path):  # issue 16
    talkers = np.stack([tone(50, 4321), 0.5 * tone(350, 4321)])
    talkers[:, 1500:3200] = 0
    arguments = (talkers.sum(0), 2, 1000, 200)
    tracks, joins = separate_in_chunks(ToneSeparator(), *arguments, silence=1e-2)
    stored_tracks, stored_joins = separate_in_chunks(ToneSeparator(), *arguments, tmp_path, silence=1e-2)
    np.testing.assert_array_equal(stored_tracks, tracks)
    assert stored_joins == joins
    assert list(tmp_path.iterdir()) == []  # the file has no name
