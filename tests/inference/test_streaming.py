"""A stream fed in any pieces is the whole, as late as it says, and goes on from a saved state."""

from math import ceil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tests.models.conftest import tiny_config
from tests.models.test_tflocoformer import tiny_config as tiny_tf_config

from flasepformer import InputError, StateError, StreamingSeparator
from flasepformer.models import SepReformer, TFLocoformer
from flasepformer.training import load_recipe

DEMO = Path(__file__).parents[2] / "demo"

RECIPES = Path(__file__).parents[2] / "recipes"
LENGTHS = [1, 0, 511, 3, 1200, 2285]


def network(**changes):
    torch.manual_seed(0)
    sizes = {"masking": True, "layer_scale": 0.5, "hop_length": 8, "filter_length": 16}
    return SepReformer(tiny_config(**sizes, **changes)).eval()


def causal():
    return network(causal=True)


NETWORKS = {
    "causal": causal,
    "following": network,
    "following, normalising": lambda: network(normalize_variance=True),
    "causal TF": lambda: TFLocoformer(tiny_tf_config(causal=True, normalize_variance=False)).eval(),
    "following TF": lambda: TFLocoformer(tiny_tf_config()).eval(),
}


def noise(n=4000, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(n)).astype(np.float32)


def played(stream, samples, lengths):
    parts = [stream.feed(part) for part in np.split(samples, np.cumsum(lengths)[:-1])]
    return np.concatenate([*parts, stream.flush()], axis=1)


def rms_of_difference(a, b):
    assert a.shape == b.shape
    return np.sqrt(np.square(a - b).mean() / np.square(b).mean())


@pytest.mark.slow
@pytest.mark.parametrize("rate", [8000, 11025, 48000])
@pytest.mark.parametrize("name", NETWORKS)
def test_fed_in_any_pieces_a_stream_is_the_whole(name, rate):
    stream = StreamingSeparator(NETWORKS[name](), rate, "cpu", delay=0.1)
    whole = played(stream, noise(), [4000])
    assert whole.shape == (2, 4000)
    assert rms_of_difference(played(stream, noise(), LENGTHS), whole) < 1e-5


@pytest.mark.parametrize("make", [causal, NETWORKS["causal TF"]])
def test_without_levels_it_is_the_causal_network_on_the_whole(make):
    model = make()
    with torch.no_grad():
        expected = model(torch.from_numpy(noise())[None])[0].numpy()
    stream = StreamingSeparator(model, device="cpu", levels=False)
    assert rms_of_difference(played(stream, noise(), LENGTHS), expected) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "rate"), [(causal, 8000), (causal, 16000), (network, 16000), (network, 44100)]
)
def test_no_sample_waits_longer_than_stated_and_one_waits_as_long(make, rate):
    stream = StreamingSeparator(make(), rate, "cpu", delay=0.1)
    waited = []
    n_in = n_out = 0
    for part in noise(rate // 5).reshape(-1, 5 if rate == 44100 else 2):
        n_in += len(part)
        waited.append(n_in - n_out)  # that long ago the oldest sample came that has not come out
        n_out += stream.feed(part).shape[1]
    assert max(waited) / rate <= stream.delay_seconds + 5 / rate  # so many came at once
    assert max(waited) / rate > stream.delay_seconds - 2e-3


def test_a_change_in_the_future_moves_nothing_that_was_given_away():
    stream = StreamingSeparator(causal(), device="cpu")
    assert (
        stream.delay_seconds == (8 * 4 + 16 - 8) / 8000
    )  # a step of 2^2 hops, and the filter beyond its hop
    mixture, other = noise(), noise()
    other[2000] += 0.5
    difference = np.abs(played(stream, mixture, [4000]) - played(stream, other, [4000])).max(0)
    first = int(np.flatnonzero(difference > 1e-6)[0])
    assert 2000 - stream.delay_seconds * 8000 < first <= 2000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "seconds"), [("causal", 1), ("following", 8)]
)  # more than it goes over again
def test_the_state_is_bounded_and_goes_on_from_a_file(name, seconds, tmp_path):
    model, rate = NETWORKS[name](), 16000
    stream = StreamingSeparator(model, rate, "cpu")
    samples = noise(seconds * rate)
    expected = played(stream, samples, [len(samples)])
    half, most = 5 * len(samples) // 8, 7 * len(samples) // 8
    early = [stream.feed(part) for part in np.split(samples[:half], 5)]
    n_bytes = stream.state_bytes
    early.append(stream.feed(samples[half:most]))
    assert stream.state_bytes <= n_bytes + 2048  # but for a part of a step
    stream.save_state(tmp_path / "state")
    other = StreamingSeparator(model, rate, "cpu")
    other.restore_state(tmp_path / "state")
    late = [other.feed(samples[most:]), other.flush()]
    assert rms_of_difference(np.concatenate([*early, *late], 1), expected) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("hours", [1, pytest.param(10, marks=pytest.mark.long)])
def test_after_hours_the_state_is_as_large_as_after_a_minute(hours):
    torch.manual_seed(0)
    slow = {"sample_rate": 2000, "hop_length": 2048, "filter_length": 4096, "n_stages": 5}
    model = SepReformer(tiny_config(masking=True, layer_scale=0.5, causal=True, **slow)).eval()
    stream = StreamingSeparator(model, device="cpu")
    part = noise(20 * 65_536)  # steps of 33 s
    stream.feed(part[: 2 * 65_536])
    n_bytes = stream.state_bytes
    n_parts = ceil(hours * 3600 * 2000 / len(part))
    for _ in range(n_parts):
        tracks = stream.feed(part)
    assert stream.state()["counts"][0] == (2 + n_parts * 20) * 65_536 >= hours * 3600 * 2000
    assert stream.state_bytes == n_bytes
    assert np.isfinite(tracks).all()
    assert tracks.std() > 0


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_the_live_model_answers_within_100_ms_at_every_usual_rate(rate):
    assert StreamingSeparator.from_pretrained("default-live", rate, "cpu").delay_seconds <= 0.1


@pytest.mark.slow
def test_the_live_model_fed_single_samples_and_a_minute_gives_what_it_gives_for_the_whole():
    stream = StreamingSeparator.from_pretrained("default-live", device="cpu", levels=False)
    samples = noise(8000 * 60)
    fed = played(stream, samples, [*[1] * 1100, 0, 8000 * 60 - 1100])
    with torch.inference_mode():
        whole = stream.model(torch.from_numpy(samples)[None])[0].numpy()
    assert rms_of_difference(fed, whole) < 1e-5


def test_the_live_recipe_is_a_network_of_98_ms():
    config = load_recipe(RECIPES / "live.yaml").model
    torch.manual_seed(0)
    stream = StreamingSeparator(SepReformer(config), device="cpu", levels=False)
    assert stream.delay_seconds == pytest.approx(0.098)  # a step, the filter beyond its hop, and 32 ms ahead
    mixture, other = noise(8000), noise(8000)
    other[4000:] += 0.5
    difference = np.abs(played(stream, mixture, [8000]) - played(stream, other, [8000])).max(0)
    first = int(np.flatnonzero(difference > 1e-6)[0])
    assert 4000 - 0.098 * 8000 <= first <= 4000 - 256  # and it hears beyond the filter


def test_a_delay_that_a_causal_model_cannot_keep_is_refused_and_a_longer_one_is_kept():
    with pytest.raises(InputError, match=r"at least 0\.08 s for this model, got 0\.05"):
        StreamingSeparator.from_pretrained("default-live", device="cpu", delay=0.05)
    assert StreamingSeparator.from_pretrained(delay=0.1, device="cpu").name == "default-live"


def test_a_warm_stream_begins_as_a_cold_one():
    stream = StreamingSeparator(causal(), 16000, "cpu")
    cold = played(stream, noise(), LENGTHS)
    stream.warm_up()
    assert np.array_equal(played(stream, noise(), LENGTHS), cold)


def test_a_state_of_another_model_rate_or_version_is_refused_with_the_reason(tmp_path, monkeypatch):
    model, path = causal(), tmp_path / "state"
    StreamingSeparator(model, device="cpu").save_state(path)
    with pytest.raises(StateError, match="another sample rate, 8000, and this stream is of 16000"):
        StreamingSeparator(model, 16000, "cpu").restore_state(path)
    other = causal()
    with torch.no_grad():
        other.encoder.weight.add_(1)
    with pytest.raises(StateError, match="another model"):
        StreamingSeparator(other, device="cpu").restore_state(path)
    monkeypatch.setattr("flasepformer.__version__", "99.0")
    with pytest.raises(StateError, match="another version"):
        StreamingSeparator(model, device="cpu").restore_state(path)
    path.write_bytes(b"nothing")
    with pytest.raises(StateError, match="no state of a stream"):
        StreamingSeparator(model, device="cpu").restore_state(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["causal", "following"])
def test_streams_that_begin_and_end_apart_go_as_one_batch(name):
    first = StreamingSeparator(NETWORKS[name](), device="cpu", delay=0.1)
    second, third = first.beside(), first.beside()
    signals = [noise(4000, seed) for seed in range(3)]
    alone = [played(first.beside(), signal, [4000]) for signal in signals]
    early = first.feed(signals[0][:1000])
    middle = StreamingSeparator.feed_together(
        [first, second, third], [signals[0][1000:2700], signals[1], signals[2][:1999]]
    )
    tracks = [np.concatenate([early, middle[0]], 1), np.concatenate([middle[1], second.flush()], 1)]
    late = StreamingSeparator.feed_together([first, third], [signals[0][2700:], signals[2][1999:]])
    tracks[0] = np.concatenate([tracks[0], late[0], first.flush()], 1)
    tracks.append(np.concatenate([middle[2], late[1], third.flush()], 1))
    for own, expected in zip(tracks, alone, strict=True):
        assert rms_of_difference(own, expected) < 1e-5


@pytest.mark.parametrize("name", ["causal", "following, normalising"])
def test_silence_is_silence(name):
    stream = StreamingSeparator(NETWORKS[name](), 16000, "cpu", delay=0.1)
    assert played(stream, noise(), LENGTHS).any()
    assert not played(stream, np.zeros(9000, np.float32), [4000, 5000]).any()


def test_louder_in_is_louder_out_of_a_network_that_follows():
    stream = StreamingSeparator(NETWORKS["following, normalising"](), 16000, "cpu", delay=0.1)
    quiet, loud = played(stream, noise(), LENGTHS), played(stream, 8 * noise(), LENGTHS)
    assert rms_of_difference(loud, 8 * quiet) < 1e-4


@pytest.mark.parametrize("gain", [0.25, 4.0])
def test_louder_in_is_louder_out_of_the_live_model_which_hears_levels_as_they_are(gain):
    recording, rate = soundfile.read(DEMO / "mixture.flac", dtype="float32", frames=48_000)
    stream = StreamingSeparator.from_pretrained("default-live", rate, "cpu")
    tracks, louder = (played(stream, by * recording, [48_000]) for by in (np.float32(1), np.float32(gain)))
    assert rms_of_difference(louder, np.float32(gain) * tracks) < 0.1
    assert louder.std() == pytest.approx(gain * tracks.std(), rel=0.02)


def test_what_a_driver_breaks_is_counted_and_goes_no_further():
    stream = StreamingSeparator(causal(), device="cpu")
    broken = noise()
    broken[[100, 200, 300]] = np.nan, np.inf, 1e35
    tracks = played(stream, broken, LENGTHS)
    assert stream.n_damaged == 3
    assert np.isfinite(tracks).all()
    assert tracks.std() > 0


def test_integers_and_channels_and_tensors_are_what_they_say():
    stream = StreamingSeparator(causal(), device="cpu")
    expected = stream.feed(np.round(noise() * 32768).astype(np.float32) / 32768)
    stream.reset()
    pcm = np.round(noise() * 32768).astype(np.int16)
    assert np.allclose(stream.feed(np.stack([pcm, pcm])), expected, atol=1e-6)
    stream.reset()
    assert np.allclose(stream.feed(torch.from_numpy(pcm)).numpy(), expected, atol=1e-6)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(InputError, match="delay must be at least"):
        StreamingSeparator(network(), device="cpu", delay=0.001)
    with pytest.raises(InputError, match="sample_rate must be a whole number from 2000"):
        StreamingSeparator(causal(), 100, "cpu")
    with pytest.raises(InputError, match=r"got \(1, 1, 1\)"):
        StreamingSeparator(causal(), device="cpu").feed(np.zeros((1, 1, 1)))
