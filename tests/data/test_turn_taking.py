import itertools

import pytest
import torch

from flasepformer.data import SpeechStore, TurnTaking, read_utterances


@pytest.fixture
def store(tmp_path, write_tone):
    """Return one utterance of 6 s each of two speakers, low and high."""
    for speaker, frequency in (("low", 200), ("high", 1700)):
        write_tone(tmp_path / "valid" / speaker / "a.wav", frequency, 6.0)
    return SpeechStore.load(read_utterances(tmp_path, "valid"), 8000)


def test_a_conversation_has_whole_turns_of_two_talkers_without_overlap(store):
    conversations = TurnTaking(store, 5, seconds=30.0)
    item = conversations[3]
    assert (item.name, item.sample_rate, len(item.mixture)) == ("turns_0003", 8000, 30 * 8000)
    assert [talker for talker, _, _ in item.turns] == [k % 2 for k in range(len(item.turns))]
    assert {stop - start for _, start, stop in item.turns} == {4 * 8000}
    pauses = [after[1] - before[2] for before, after in itertools.pairwise(item.turns)]
    assert 0 <= min(pauses) <= max(pauses) <= 10 * 8000
    spoken = torch.zeros(2, len(item.mixture), dtype=torch.bool)
    pitches = [set(), set()]
    for talker, start, stop in item.turns:
        spoken[talker, start:stop] = True
        turn = item.sources[talker, start:stop]
        assert turn.square().mean().sqrt().item() == pytest.approx(0.05, rel=1e-4)
        pitches[talker].add(torch.fft.rfft(turn).abs().argmax().item() // 4)
    assert sorted(pitches, key=min) == [{200}, {1700}]  # Hz: each talker is one speaker
    assert not item.sources[~spoken].any()
    assert torch.equal(item.mixture, item.sources.sum(0))


def test_a_conversation_is_the_same_whenever_it_is_asked_for_and_unlike_the_others(store):
    first, again = TurnTaking(store, 3), TurnTaking(store, 5)
    assert torch.equal(first[1].mixture, again[1].mixture)
    assert not torch.equal(first[1].mixture, first[2].mixture)
    assert [item.name for item in first] == ["turns_0000", "turns_0001", "turns_0002"]


def test_one_speaker_holds_no_conversation(tmp_path, write_tone):
    write_tone(tmp_path / "valid" / "only" / "a.wav", 200, 6.0)
    alone = SpeechStore.load(read_utterances(tmp_path, "valid"), 8000)
    with pytest.raises(ValueError, match="needs two speakers"):
        TurnTaking(alone, 1)[0]
