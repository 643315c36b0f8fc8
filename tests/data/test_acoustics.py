import numpy as np
import pytest
import soundfile

from flasepformer.data.acoustics import Noise, RoomResponse, convolve, equalize, load_rooms, low_pass, rms


def noise(n_samples, seed=0):
    return np.random.default_rng(seed).standard_normal(n_samples).astype(np.float32)


@pytest.mark.parametrize(("n_samples", "n_response"), [(1, 1), (100, 30), (30, 100), (2**18 + 5, 7)])
def test_convolve_equals_its_definition(n_samples, n_response):
    waveform, response = noise(n_samples), noise(n_response, 1)
    np.testing.assert_allclose(convolve(waveform, response), np.convolve(waveform, response), atol=1e-4)


def test_a_response_keeps_the_direct_sound_in_place_at_its_level():
    response = np.zeros(500)
    response[[40, 440]] = -0.2, 0.1  # direct sound, upside down, and an echo of half its level
    waveform = noise(1000)
    heard = RoomResponse.aligned(response).apply(waveform)
    expected = waveform.copy()
    expected[400:] -= 0.5 * waveform[:600]
    np.testing.assert_allclose(heard, expected, atol=1e-5)
    np.testing.assert_allclose(RoomResponse.aligned(response).early(399).apply(waveform), waveform, atol=1e-5)


def test_rooms_are_files_and_folders_at_the_rate_asked_for(tmp_path):
    (tmp_path / "hall").mkdir()
    click = np.zeros(1600)
    click[100] = 0.5
    for name in ("hall/a.wav", "hall/b.wav", "booth.wav"):
        soundfile.write(tmp_path / name, np.stack([click, -click], 1), 16000, "FLOAT")
    (tmp_path / "readme.txt").write_text("rooms")
    rooms = load_rooms(tmp_path, 8000)
    assert [len(room) for room in rooms] == [1, 2]
    assert [(response.direct, len(response.samples)) for response in rooms[1]] == [(50, 800)] * 2

    soundfile.write(tmp_path / "hall/c.wav", np.zeros(100), 8000)
    with pytest.raises(ValueError, match=r"hall.c.wav: a room response must not be silent"):
        load_rooms(tmp_path, 8000)
    with pytest.raises(ValueError, match="no room responses in"):
        load_rooms(tmp_path / "nowhere", 8000)


def test_noise_comes_from_everywhere_and_goes_on_where_a_recording_ends(tmp_path):
    for k, n_samples in enumerate((300, 700)):
        ramp = (k + 1) * 0.1 + np.arange(n_samples) * 1e-4
        soundfile.write(tmp_path / f"{k}.wav", ramp, 8000, "FLOAT")
    store = Noise.load([tmp_path], 8000)
    rng = np.random.default_rng(0)
    starts = [store.draw(rng, 100) for _ in range(200)]
    assert all(len(stretch) == 100 for stretch in starts)
    assert len({float(stretch[0]) for stretch in starts}) > 150
    assert len(store.draw(rng, 5000)) == 5000
    with pytest.raises(ValueError, match="no recordings of noise in"):
        Noise.load([tmp_path / "nowhere"], 8000)


def test_equalize_colours_and_keeps_the_level_and_the_timing():
    waveform = noise(16000)
    spectra = []
    for seed in range(8):
        coloured = equalize(waveform, 8000, 6.0, np.random.default_rng(seed))
        assert rms(coloured) == pytest.approx(rms(waveform), rel=1e-5)
        assert int(np.correlate(coloured, waveform[4000:-4000], "valid").argmax()) == 4000
        ratio = np.abs(np.fft.rfft(coloured)) / np.abs(np.fft.rfft(waveform))
        spectra.append(20 * np.log10([np.median(ratio[lo:hi]) for lo, hi in ((100, 400), (6000, 7600))]))
    tilts = np.diff(spectra)
    assert 3 < np.abs(tilts).max() <= 4 * 6.0
    assert tilts.min() < 0 < tilts.max()
    np.testing.assert_allclose(equalize(waveform, 8000, 0.0, np.random.default_rng(0)), waveform, atol=1e-5)


def test_low_pass_keeps_what_is_below_and_cuts_what_is_above():
    time = np.arange(8000) / 8000
    tones = np.stack([np.sin(2 * np.pi * f * time) for f in (1900, 2300)]).astype(np.float32)
    below, above = low_pass(tones, 8000, 2000.0)
    np.testing.assert_allclose(below[500:-500], tones[0, 500:-500], atol=2e-3)
    assert rms(above[500:-500]) < 1e-3
