import pytest
from tests.benchmark.conftest import result

from flasepformer.benchmark import Case, cases_for


def test_models_take_turns_at_each_length_shortest_first():
    cases = cases_for(["default", "fla-sepreformer-t"], [16, 4], threads=2)
    assert [(case.model, case.seconds, case.threads) for case in cases] == [
        ("default", 4, 2),
        ("fla-sepreformer-t", 4, 2),
        ("default", 16, 2),
        ("fla-sepreformer-t", 16, 2),
    ]


def test_a_checkpoint_goes_by_its_last_name_and_two_of_one_name_are_refused():
    assert Case(model="/home/someone/runs/best/", seconds=1.0).label == "best"
    with pytest.raises(ValueError, match="several models are called best; rename"):
        cases_for(["a/best", "b/best"], [1])


def test_lengths_must_be_positive():
    with pytest.raises(ValueError, match=r"positive, in seconds, got \[0, 4\]"):
        cases_for(["default"], [4, 0])


def test_medians_over_the_rounds():
    measured = result(seconds=4.0, time=2.0, memory=1e6)
    assert measured.seconds == 2.0
    assert measured.real_time_factor == 0.5
    assert measured.peak_memory == 1e6
