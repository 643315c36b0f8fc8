"""The network of voices learns to tell talkers apart, and is scored on others."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.training.conftest import voice

from flasepformer.conversation.mels import log_mel
from flasepformer.conversation.voice import VoiceNetwork
from flasepformer.training import voices


@pytest.fixture(scope="module")
def spoken():
    """Log mel powers of four synthetic talkers, three utterances each."""
    said = [(name, k) for name in range(4) for k in range(3)]
    mels = [log_mel(voice(name, k, 16_000).astype(np.float32)).numpy().astype(np.float16) for name, k in said]
    return mels, [str(name) for name, _ in said]


def test_a_moment_of_training_brings_voices_of_one_talker_together(spoken, monkeypatch):
    monkeypatch.setattr(voices, "CROP_FRAMES", (40, 60))
    mels, talkers = spoken
    same = np.array(talkers)[:, None] == np.array(talkers)
    pairs = ~np.eye(len(talkers), dtype=bool)

    def nearer(network):
        """By how much two utterances of one talker are more alike than those of two."""
        with torch.inference_mode():
            found = np.concatenate(
                [network(torch.from_numpy(m.astype(np.float32))[None]).numpy() for m in mels]
            )
        alike = found @ found.T
        return alike[same & pairs].mean() - alike[~same].mean()

    torch.manual_seed(0)
    assert nearer(VoiceNetwork().eval()) < 0.3
    assert nearer(voices.train_voices(mels, talkers, steps=15)) > 0.6


def test_training_goes_on_from_what_a_network_has_learnt(spoken):
    mels, talkers = spoken
    network = VoiceNetwork()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert voices.train_voices(mels, talkers, steps=1, network=network) is network
    moved = max(
        float((value.float() - before[name].float()).abs().max())
        for name, value in network.state_dict().items()
        if name.endswith("weight")
    )
    assert 0 < moved < 0.1


def test_pairs_from_one_recording_do_not_count():
    found = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    assert voices.error_rate_of(found, ["a", "a", "b", "b"], [0, 0, 1, 2]) == 0  # the pair of a is of one
    assert voices.error_rate_of(found, ["a", "b", "b", "a"], [0, 1, 2, 3]) == 0.625  # 1 of 2, 3 of 4


def test_other_microphones_change_a_voice_and_not_its_length():
    batch = torch.randn(3, 50, 40)
    varied = voices.varied(batch, np.random.default_rng(0))
    assert varied.shape == batch.shape
    assert varied.isfinite().all()
    assert 0.1 < (varied - batch).square().mean().sqrt() < 5
    again = voices.varied(batch, np.random.default_rng(0))
    torch.testing.assert_close(again, varied)


def test_in_a_room_a_click_dies_away_by_60_db_in_its_time():
    click = torch.zeros(1, 100, 1)
    click[0, 10] = 1.0
    heard = voices.in_a_room(click, torch.full((1, 1, 1), 0.5), torch.full((1, 1, 1), 2.0))[0, :, 0]
    assert not heard[:10].any()
    assert heard[10] == 1
    assert heard[12] / heard[37] == pytest.approx(1e6, rel=1e-3)  # half a second
    assert float(heard[11:].sum()) == pytest.approx(1 / 2, rel=1e-3)


def test_the_command_stores_weights_that_the_network_takes_and_prints_two_rates(speech, tmp_path, capsys):
    for split, there in (("train", "train"), ("test", "valid")):
        (tmp_path / "speech" / split).parent.mkdir(exist_ok=True)
        (tmp_path / "speech" / split).symlink_to(speech / there)
    voices.main([str(tmp_path / "speech"), str(tmp_path / "voice.safetensors"), "--steps", "2"])
    weights = load_file(tmp_path / "voice.safetensors")
    again = [str(tmp_path / "speech"), str(tmp_path / "more.safetensors"), "--steps", "1"]
    voices.main([*again, "--start", str(tmp_path / "voice.safetensors")])
    assert load_file(tmp_path / "more.safetensors").keys() == weights.keys()
    missing, surplus = VoiceNetwork().load_state_dict(weights, strict=False)
    assert all(name.endswith("num_batches_tracked") for name in missing)
    assert surplus == []
    assert weights["project.weight"].dtype == torch.float16
    said = capsys.readouterr().out
    assert "6 utterances of 2 talkers" in said
    assert "test, 2 s: equal error rate" in said
    assert "test, 4 s: no utterance is as long" in said
