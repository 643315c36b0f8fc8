"""The Wiener filter behind a model, against its definition and on the demo's speech."""

from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import istft, stft
from tests.conversation.test_voices import DEMO
from tests.networks import tiny

from flasepformer.audio import BLOCK_LENGTH, resample
from flasepformer.errors import InputError
from flasepformer.inference import Separator
from flasepformer.inference.finishing import array_reader
from flasepformer.inference.post_filter import PostFiltered
from flasepformer.metrics import si_snr
from flasepformer.models import convert_checkpoint, save_model
from flasepformer.models.filter_network import CONTEXT, FilterNetwork
from flasepformer.training.filtering import filtered

RATE = 8000


@pytest.fixture(scope="module")
def speech():
    """Mixture, and its sources with a third of the other: (time,), (source, time)."""
    sources = np.stack([soundfile.read(DEMO / f"source{k}.flac", dtype="float32")[0] for k in (1, 2)])
    sources = sources[:, :40_001] / sources[:, :40_001].std(axis=1, keepdims=True)
    return sources.sum(0), sources + 0.3 * sources[::-1], sources


def behind(mixture, estimates, share, rate=RATE, **network):
    return PostFiltered(array_reader(mixture), array_reader(estimates), len(mixture), rate, share, **network)


@pytest.fixture(scope="module")
def network():
    """Of random weights, of which every one matters."""
    torch.manual_seed(0)
    network = FilterNetwork().eval().requires_grad_(False)
    for weight in network.parameters():
        weight.add_(0.05 * torch.randn_like(weight))
    return network


def test_it_is_the_mixture_times_the_share_that_each_estimate_has_of_the_power(speech):
    mixture, estimates, _ = speech
    window = {"fs": RATE, "nperseg": 1024, "noverlap": 768}
    x, s = stft(mixture, **window)[2], stft(estimates, **window)[2]
    powers = np.abs(s) ** 2
    gains = powers / (powers.sum(0) + np.abs(x - s.sum(0)) ** 2 + 1e-20)
    expected = istft(gains * x, **window)[1][:, : len(mixture)]
    found = behind(mixture, estimates, 1.0)(0, len(mixture))
    inner = slice(1024, -1024)  # scipy divides by fewer windows at the ends
    np.testing.assert_allclose(found[:, inner], expected[:, inner], atol=1e-5)
    half = behind(mixture, estimates, 0.5)(0, len(mixture))
    np.testing.assert_allclose(half, (found + estimates) / 2, atol=1e-6)
    assert np.array_equal(behind(mixture, estimates, 0.0)(0, len(mixture)), estimates)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("n_samples", [1, 255, 256, 1025, 2 * BLOCK_LENGTH + 77])
def test_samples_are_the_same_wherever_pieces_begin(n_samples, learned, network):
    rng = np.random.default_rng(0)
    estimates = rng.standard_normal((3, n_samples)).astype(np.float32)
    found = behind(estimates.sum(0) + 0.1, estimates, 0.6, network=network if learned else None)
    whole = found(0, n_samples)
    assert whole.shape == (3, n_samples)
    cuts = sorted({0, n_samples, *rng.integers(0, n_samples + 1, 9).tolist()})
    pieces = [found(first, last) for first, last in pairwise(cuts)]
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=1e-5)
    assert found(0, 0).shape == (3, 0)
    np.testing.assert_allclose(found.of(slice(1, 2), 0, n_samples), whole[1:2], atol=1e-6)


def test_pieces_are_what_the_network_makes_of_the_whole(speech, network):
    mixture, estimates, _ = speech
    whole = filtered(network, torch.from_numpy(mixture)[None], torch.from_numpy(estimates)[None])[0]
    level = float(np.sqrt(np.mean(np.square(mixture))))
    pieces = behind(mixture, estimates, 1.0, network=network, level=level)
    np.testing.assert_allclose(pieces(0, len(mixture)), whole, atol=1e-4)
    louder = behind(8 * mixture, 8 * estimates, 1.0, network=network, level=8 * level)
    np.testing.assert_allclose(louder(0, 9000) / 8, pieces(0, 9000), atol=1e-5)


def test_a_network_that_has_learned_nothing_is_the_filter_by_powers(speech):
    mixture, estimates, _ = speech
    untrained = behind(mixture, estimates, 1.0, network=FilterNetwork(), level=float(mixture.std()))
    np.testing.assert_allclose(untrained(0, 9000), behind(mixture, estimates, 0.6)(0, 9000), atol=1e-4)


def test_the_network_turns_with_the_phase_and_hears_so_many_frames(network):
    torch.manual_seed(0)
    mixture, own, others = torch.randn(3, 1, 2 * CONTEXT + 3, 513, dtype=torch.complex64)
    found = network(mixture, own, others)
    turn = torch.exp(1j * torch.rand(own.shape) * 6)
    torch.testing.assert_close(network(*(x * turn for x in (mixture, own, others))), found * turn)
    changed = own.clone()
    changed[:, 0] = 0
    differs = (network(mixture, changed, others) - found).abs().amax((0, 2)) > 1e-6
    assert differs[: CONTEXT - 1].all()
    assert not differs[CONTEXT + 1 :].any()


def test_a_network_at_another_rate_is_refused(speech, network):
    mixture, estimates, _ = speech
    with pytest.raises(InputError, match="513 bins, not those at 16000 Hz"):
        behind(mixture, estimates, 1.0, rate=16_000, network=network)


@pytest.mark.slow
def test_the_network_of_the_package_is_better_than_the_gains():
    default = Separator.from_pretrained(device="cpu")
    read = [soundfile.read(DEMO / f"source{k}.flac", dtype="float32") for k in (1, 2)]
    sources = np.stack([resample(samples, rate, RATE) for samples, rate in read])
    mixture = sources.sum(0)
    estimates = default.alike({"post_filter": 0.0}).separate(mixture, RATE)
    level = float(mixture.std())
    by_power = behind(mixture, estimates, 0.6)(0, len(mixture))
    learned = behind(mixture, estimates, 1.0, network=default.filter_network, level=level)(0, len(mixture))
    plain, powers, trained = (
        max(si_snr(torch.from_numpy(x), torch.from_numpy(s.copy())).mean() for s in (sources, sources[::-1]))
        for x in (estimates, by_power, learned)
    )
    assert trained > powers + 0.2
    assert powers > plain
    tracks = default.separate(mixture, RATE)
    assert abs(np.corrcoef(tracks[0], learned[0])[0, 1]) > 0.999
    shares = sorted(((tracks @ sources.T) / np.square(sources).sum(1)).max(0))
    assert 0.9 < shares[0] <= shares[1] < 1.1  # one was 3 dB too loud, which SI-SNR does not hear


def test_estimates_that_are_the_sources_of_no_common_bin_stay_and_silence_stays_silent():
    moments = np.arange(RATE) / RATE
    tones = np.stack([np.sin(2 * np.pi * f * moments) for f in (500, 1500)]).astype(np.float32)
    found = behind(tones.sum(0), tones, 1.0)(1024, RATE - 1024)
    np.testing.assert_allclose(found, tones[:, 1024:-1024], atol=1e-4)
    assert not behind(0 * tones[0], 0 * tones, 1.0)(0, RATE).any()


def test_noise_that_no_estimate_has_is_not_given_back(speech):
    mixture, _, sources = speech
    noise = 0.5 * np.random.default_rng(0).standard_normal(len(mixture)).astype(np.float32)
    found = behind(mixture + noise, sources, 1.0)(0, len(mixture))
    left = np.mean(np.square(found.sum(0) - mixture))
    assert left < 0.5 * np.mean(np.square(noise))


def test_what_leaks_into_speech_is_less_behind_it(speech):
    mixture, estimates, sources = speech
    found = behind(mixture, estimates, 0.6)(0, len(mixture))
    before, after = (si_snr(torch.from_numpy(x), torch.from_numpy(sources)) for x in (estimates, found))
    assert (after > before + 1).all()


def test_a_model_brings_its_share_and_users_choose_another(tmp_path, voices):
    save_model(tiny(layer_scale=0.5), tmp_path / "model", {"post_filter": 0.6})
    mixture = voices(6000)
    known = Separator.from_pretrained(tmp_path / "model", "cpu")
    assert known.post_filter == 0.6
    assert known.alike({}).post_filter == known.alike({"post_filter": None}).post_filter == 0.6
    assert known.within(10**9).post_filter == 0.6
    without = Separator.from_pretrained(tmp_path / "model", "cpu", post_filter=0.0)
    tracks, plain = known.separate(mixture, RATE), without.separate(mixture, RATE)
    np.testing.assert_allclose(tracks, behind(mixture - mixture.mean(), plain, 0.6)(0, 6000), atol=1e-4)
    assert not np.allclose(tracks, plain, atol=1e-3)
    assert Separator(known.model, "cpu").post_filter == 0  # of a network alone, nothing is known
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="post_filter must be from 0 to 1"):
            Separator(known.model, "cpu", post_filter=share)


def test_a_converted_model_keeps_its_share(tmp_path):
    save_model(tiny(), tmp_path / "model", {"post_filter": 1})
    convert_checkpoint(tmp_path / "model", tmp_path / "half", dtype=torch.float16)
    assert Separator.from_pretrained(tmp_path / "half", "cpu").post_filter == 1


def test_a_copy_of_the_default_model_does_as_it_does(tmp_path, voices):
    convert_checkpoint("default", tmp_path / "copy", dtype=torch.float16)
    copied, default = (Separator.from_pretrained(name, "cpu") for name in (tmp_path / "copy", "default"))
    assert copied.post_filter == default.post_filter == 1
    assert copied.filter_network is not None
    mixture = voices(6000)
    np.testing.assert_allclose(copied.separate(mixture, RATE), default.separate(mixture, RATE), atol=1e-4)


def test_what_is_not_in_the_package_is_not_taken_from_a_checkpoint(tmp_path):
    for name in ("../elsewhere", "owner/name", 3, None, ["default"]):
        save_model(tiny(), tmp_path / "model", {"filter": name, "post_filter": 1.0})
        assert Separator.from_pretrained(tmp_path / "model", "cpu").filter_network is None


def test_a_share_that_makes_no_sense_in_a_checkpoint_counts_as_none(tmp_path):
    for share in (7.0, "much", None, True):
        save_model(tiny(), tmp_path / "model", {"post_filter": share})
        assert Separator.from_pretrained(tmp_path / "model", "cpu").post_filter == 0
