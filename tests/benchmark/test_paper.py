from tests.benchmark.conftest import result

from flasepformer.benchmark import PAPER_MODELS, PAPER_SECONDS, paper_table


def six(**changed):
    """Results with softmax twice as slow and with four times the memory, except where a status is given."""
    return [
        result(
            name,
            seconds=PAPER_SECONDS,
            time=10.0 if name.startswith("fla-") else 20.0,
            memory=1e9 if name.startswith("fla-") else 4e9,
            status=changed.get(name.replace("-", "_"), "ok"),
        )
        for name in PAPER_MODELS
    ]


def test_speed_up_and_memory_share_stand_beside_the_papers():
    lines = paper_table(six()).splitlines()
    assert lines[4] == "| T | 2.00 x | 2.29 x | 25.0% | 15.8% |"
    assert lines[6] == "| L | 2.00 x | 1.49 x | 25.0% | 31.9% |"


def test_a_model_that_failed_is_named_in_place_of_a_ratio():
    last = paper_table(six(sepreformer_l="out of memory")).splitlines()[-1]
    assert last.startswith("| L | sepreformer-l: out of memory | 1.49 x |")


def test_no_table_unless_all_six_were_measured():
    assert paper_table(six()[:5]) == ""
