import math

import pytest

from flasepformer.data import MixtureFolder
from flasepformer.evaluation import EvaluationRow, evaluate, load_result, read_scores, write_scores
from flasepformer.models import load_model

NAN = math.nan
ROWS = [
    EvaluationRow(
        name='a, "quoted" and\nbroken',
        seconds=1.5,
        compute_seconds=0.25,
        scores={"si_snr": (4.0, 6.0), "confusion": (0.125,)},
        groups={"sexes": "F-M"},
    ),
    EvaluationRow(
        name="silent",
        seconds=2.0,
        compute_seconds=0.5,
        scores={"si_snr": (1.0, NAN), "confusion": (NAN,)},
        groups={"sexes": ""},
    ),
    EvaluationRow(name="broken", groups={"sexes": "M-M"}, error="it is HTML"),
]


def test_a_table_is_read_as_it_was_written(tmp_path):
    write_scores(tmp_path / "scores.csv", ROWS)
    first, silent, broken = read_scores(tmp_path / "scores.csv")
    assert first == ROWS[0]
    assert silent.scores["si_snr"][0] == 1
    assert math.isnan(silent.scores["si_snr"][1])
    assert math.isnan(silent.scores["confusion"][0])
    assert (broken.error, broken.scores, math.isnan(broken.seconds)) == ("it is HTML", {}, True)


def test_the_table_has_the_mean_then_each_talker_and_says_where_nothing_applies(tmp_path):
    write_scores(tmp_path / "scores.csv", ROWS[1:])
    assert (tmp_path / "scores.csv").read_text().splitlines() == [
        "name,sexes,seconds,compute_seconds,SI-SNR,SI-SNR_1,SI-SNR_2,confusion,error",
        "silent,,2.000,0.500,1.000,1.000,n/a,n/a,",
        "broken,M-M,n/a,n/a,n/a,n/a,n/a,n/a,it is HTML",
    ]


@pytest.mark.slow
def test_a_table_gives_the_same_summary_as_the_evaluation_did(checkpoint, mixtures, tmp_path):
    result = evaluate(load_model(checkpoint), MixtureFolder(mixtures), metrics=("sir",))
    result.write(tmp_path, model="tiny")
    stored = load_result(tmp_path)
    assert stored.rows == result.rows
    assert stored.summary() == result.summary()
    assert stored.facts["mean"] == result.summary().mean


def test_a_table_in_which_all_failed_is_one_still(tmp_path):
    write_scores(tmp_path / "scores.csv", ROWS[2:])
    (broken,) = read_scores(tmp_path / "scores.csv")
    assert (broken.name, broken.error, broken.scores) == ("broken", "it is HTML", {})


def test_a_table_of_before_this_version_is_read(tmp_path):
    (tmp_path / "old.csv").write_text(
        "name,seconds,compute_seconds,SI-SNR,SI-SNR_1,SI-SNR_2,SI-SNRi,SI-SNRi_1,SI-SNRi_2\n"
        "x,2.765,0.069,3.139,0.274,6.003,3.235,4.063,2.408\n"
    )
    (row,) = read_scores(tmp_path / "old.csv")
    assert row.scores == {"si_snr": (0.274, 6.003), "si_snr_improvement": (4.063, 2.408)}
    assert row.mean("si_snr_improvement") == pytest.approx(3.2355)


@pytest.mark.parametrize(
    "content",
    [
        b"path,speaker\nx,y\n",
        b"",
        b"\xff\xfe\x00",
        b"name,seconds,compute_seconds,SI-SNR,SI-SNR_1\na,1,1,2,two\n",
    ],
)
def test_what_is_no_table_of_scores_is_refused(content, tmp_path):
    (tmp_path / "scores.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"is no table of scores|holds something that is no number"):
        read_scores(tmp_path / "scores.csv")
