import csv
import dataclasses

import pytest
import torch
from tests.training.conftest import changed, with_data

from flasepformer.data import read_utterances
from flasepformer.training import train
from flasepformer.training.examples import held_out_speakers, open_examples, open_further_validation
from flasepformer.training.validation import Scores, Validation


class Alone:
    """An accelerator of one process, as far as validation asks."""

    device = torch.device("cpu")
    is_main_process = True
    process_index, num_processes = 0, 1

    def autocast(self):
        return torch.autocast("cpu", enabled=False)

    def reduce(self, total):
        return total


@pytest.fixture
def talking(small_recipe):
    """A recipe that also validates conversations; one of the two speakers to train on is held out."""
    recipe = dataclasses.replace(
        small_recipe, mixing=dataclasses.replace(small_recipe.mixing, n_sources=2, segment_seconds=0.5)
    )
    return with_data(recipe, n_valid_conversations=2, conversation_seconds=20.0)


class Oracle(torch.nn.Module):
    """Gives the sources of mixtures that it has been shown, with the tracks swapped where it is told to."""

    def __init__(self, conversations, swap_from):
        super().__init__()
        self.known = {}
        for index in range(2):
            mixture, sources, _ = conversations.example_with_turns(index)
            swapped = sources.clone()
            start = round(swap_from * sources.shape[-1])
            swapped[:, start:] = sources[:, start:].flip(0)
            self.known[mixture.double().sum().item()] = swapped

    def forward(self, mixture):
        sources = self.known.get(mixture.double().sum().item())
        return mixture.unsqueeze(1).expand(-1, 2, -1) if sources is None else sources[None]


def test_turns_on_the_wrong_track_are_a_score_of_the_validation(talking, tmp_path):
    _, examples = open_examples(talking, tmp_path)
    further = open_further_validation(talking, tmp_path)
    validation = Validation(talking, examples, further, Alone())
    (conversations,) = further.conversations
    right = validation.scores(Oracle(conversations, 1.0))
    assert right.wrong_turns == 0
    late = validation.scores(Oracle(conversations, 0.9))
    assert 0 < late.wrong_turns < 0.5
    assert late.total_db == pytest.approx(late.si_snr_improvement_db - 20 * late.wrong_turns)


def test_held_out_speakers_are_neither_trained_on_nor_chosen_by_chance(small_recipe, speech, tmp_path):
    recipe = with_data(small_recipe, n_held_out_speakers=1)
    spoken = read_utterances(speech, "train")
    held_out = held_out_speakers(recipe, spoken)
    assert len(held_out) == 1
    assert held_out == held_out_speakers(dataclasses.replace(recipe, seed=99), spoken[::-1])
    with pytest.raises(ValueError, match="mixtures of 2 need as many speakers, got 1"):
        open_examples(recipe, tmp_path)
    with pytest.raises(ValueError, match="n_held_out_speakers is 3, but there are 2"):
        held_out_speakers(with_data(small_recipe, n_held_out_speakers=3), spoken)
    with pytest.raises(ValueError, match="n_held_out_speakers is 1, but there are 0"):
        held_out_speakers(with_data(recipe, held_out_corpora=("vctk",)), spoken)


def test_one_number_chooses_by_all_scores():
    assert Scores(8.0, 7.9).total_db == 8.0
    assert Scores(8.0, 7.9, 6.0, 0.1).total_db == pytest.approx(7.0 - 2.0)
    assert Scores(8.0, 7.9, 6.0, 0.25).row() == {
        "valid_si_snr_improvement_db": 8.0, "held_out_si_snr_improvement_db": 6.0, "wrong_turns_percent": 25.0
    }  # fmt: skip


def test_the_curve_has_the_share_of_wrong_turns(talking, tmp_path):
    train(changed(talking, n_steps=1, warmup_steps=1, decay_steps=0), tmp_path / "run")
    with (tmp_path / "run" / "curve.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert 0 <= float(row["wrong_turns_percent"]) <= 60
    assert row["held_out_si_snr_improvement_db"] == ""
