from flasepformer.evaluation import EvaluationRow, choose_examples


def rows(**scores):
    return [
        EvaluationRow(name=name, scores={"si_snr_improvement": (score,)}) for name, score in scores.items()
    ]


def test_an_example_says_better_only_if_it_is():
    first = rows(a=1.0, b=2.0, c=3.0, d=4.0)
    worse = rows(a=0.5, b=1.0, c=1.5, d=2.0)
    assert dict((name, why) for why, name in choose_examples([first, worse], 1)) == {
        "a": "Worse than the first", "b": "Median difference", "d": "Worse than the first",
    }  # fmt: skip
    mixed = rows(a=5.0, b=2.0, c=3.0, d=2.0)
    assert [why for why, _ in choose_examples([first, mixed], 1)] == [
        "Better than the first", "Median difference", "Worse than the first",
    ]  # fmt: skip
    assert choose_examples([first, first], 1)[0] == ("As good as the first", "a")
