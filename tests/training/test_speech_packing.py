import dataclasses

import numpy as np
import pytest
import soundfile
from tests.training.conftest import with_data

from flasepformer.data import SpeechStore, read_utterances
from flasepformer.training.speech_packing import pack_speech


@pytest.fixture
def noisy(recipe, tmp_path):
    """Return the recipe with a folder of noise."""
    (tmp_path / "hum").mkdir()
    soundfile.write(tmp_path / "hum" / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(8000), 8000)
    return dataclasses.replace(
        recipe, mixing=dataclasses.replace(recipe.mixing, noise=(str(tmp_path / "hum"),))
    )


@pytest.mark.slow
def test_what_was_packed_is_the_speech_of_the_same_speakers(noisy, speech, tmp_path):
    packed = pack_speech(noisy, tmp_path / "packed", max_bytes=10**6)
    assert packed.train_hours == pytest.approx(6 * 2 / 3600)
    assert packed.left_out_hours == 0
    files = [path for path in (tmp_path / "packed").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= packed.n_bytes < 10**6
    assert [path.parent.name for path in files if "noise" in path.parts] == ["hum"]
    for split in ("train", "valid"):
        before, after = (
            SpeechStore.load(read_utterances(place, split), 8000)
            for place in (speech, tmp_path / "packed" / "MANIFEST.csv")
        )
        names = [[u.speaker for u in store.utterances] for store in (before, after)]
        assert sorted(names[0]) == sorted(names[1])
        for speaker in set(names[0]):
            first, second = (
                store.waveform(spoken.index(speaker))
                for store, spoken in zip((before, after), names, strict=True)
            )
            assert 10 * np.log10(np.mean((first - second) ** 2)) < -9  # both have power 1


@pytest.mark.slow
def test_little_room_is_shared_by_all_speakers(recipe, speech, tmp_path):
    whole = pack_speech(recipe, tmp_path / "whole", max_bytes=10**6)
    some = pack_speech(recipe, tmp_path / "some", max_bytes=whole.n_bytes - 4000)
    spoken = [u.speaker for u in read_utterances(tmp_path / "some" / "MANIFEST.csv", "train")]
    assert sorted(spoken) in (["anna", "anna", "ben", "ben"], ["anna", "anna", "anna", "ben", "ben"])
    assert some.left_out_hours == pytest.approx((6 - len(spoken)) * 2 / 3600)
    assert len(read_utterances(tmp_path / "some" / "MANIFEST.csv", "valid")) == 6


def test_without_room_for_any_training_there_is_no_pack(recipe, tmp_path):
    with pytest.raises(ValueError, match=r"0\.0 MB have no room for any of the 6"):
        pack_speech(recipe, tmp_path / "packed", max_bytes=9000)
    with pytest.raises(FileExistsError):
        pack_speech(recipe, tmp_path / "packed", max_bytes=10**6)


def test_a_rate_that_opus_does_not_know_is_refused(recipe, tmp_path):
    odd = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, sample_rate=11_025))
    with pytest.raises(ValueError, match="11025 Hz"):
        pack_speech(with_data(odd), tmp_path / "packed", max_bytes=10**6)
