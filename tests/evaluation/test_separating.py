"""How mixtures get through the model: straight through the network, or as recordings, whole or in chunks."""

import csv
import json

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from flasepformer.data import MixtureFolder
from flasepformer.evaluation import evaluate, load_result
from flasepformer.evaluation.scoring import score_estimates
from flasepformer.evaluation.separating import fix_options, share_memory
from flasepformer.inference import Separator
from flasepformer.inference.estimates import need_as_a_whole
from flasepformer.models import SepReformer, SepReformerConfig, load_model

RATE = 8000


class Forgetful(nn.Module):
    """Separates a low talker from a high one by the spectrum, and swaps their tracks after 4 s."""

    sample_rate, n_sources = RATE, 2

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(1.0))

    def forward(self, mixture):
        n_samples = mixture.shape[-1]
        spectrum = self.level * torch.fft.rfft(mixture)
        low = torch.arange(spectrum.shape[-1]) * RATE / n_samples < 600
        tracks = torch.stack([torch.fft.irfft(spectrum * mask, n_samples) for mask in (~low, low)], dim=1)
        return torch.cat([tracks[..., : 4 * RATE], tracks.flip(1)[..., 4 * RATE :]], -1)


def write(folder, **sources):
    """Write a set of one mixture, "a"."""
    for name, waveform in {**sources, "mix": sum(sources.values())}.items():
        (folder / name).mkdir(parents=True)
        soundfile.write(folder / name / "a.wav", waveform, RATE, "FLOAT")
    return MixtureFolder(folder)


@pytest.fixture
def talk(tmp_path):
    """Eight seconds of two talkers who talk all the time, a tone each."""
    times = np.arange(8 * RATE) / RATE
    return write(tmp_path / "talk", s1=np.sin(3000 * times), s2=np.sin(6000 * times))


@pytest.fixture
def quiet(tmp_path):
    """A second of noise and noise, at -60 dB: no level that a model is trained for."""
    first, second = 1e-3 * np.random.default_rng(0).standard_normal((2, RATE))
    return write(tmp_path / "quiet", s1=first, s2=second)


def scores(result):
    assert not result.failures
    return [row.scores for row in result.rows]


def rounded(scores):
    return {metric: tuple(round(value, 3) for value in values) for metric, values in scores.items()}


def test_by_default_it_is_the_network_and_nothing_else(checkpoint, quiet):
    """As in published results: the mixture as it is, in one pass."""
    model = load_model(checkpoint).eval()
    with torch.inference_mode():
        expected = score_estimates(model(quiet[0].mixture[None])[0], quiet[0])
    for judged in (model, Separator(model, "cpu", mode="chunks", chunk_seconds=1, overlap_seconds=0.5)):
        assert scores(evaluate(judged, quiet, metrics=())) == [rounded(expected)]


def test_with_options_a_mixture_is_what_users_get_of_a_recording(checkpoint, quiet):
    model = load_model(checkpoint)
    expected = score_estimates(
        Separator(model, "cpu", mode="whole").separate(quiet[0].mixture, RATE), quiet[0]
    )
    (got,) = scores(evaluate(model, quiet, metrics=(), run_options={"mode": "whole"}))
    assert got == rounded(expected)
    (network,) = scores(evaluate(model, quiet, metrics=()))
    assert abs(network["si_snr"][0] - got["si_snr"][0]) > 0.01  # its level matters to the network


@pytest.mark.parametrize(
    ("run_options", "confusion"),
    [
        (None, 0.5),
        ({"mode": "whole"}, 0.5),
        ({"mode": "auto", "chunk_seconds": 20.0}, 0.5),
        ({"mode": "chunks", "chunk_seconds": 4.0, "overlap_seconds": 1.0}, 0),
    ],
)
def test_chunks_forget_and_the_whole_does_not(talk, run_options, confusion):
    """The model swaps the talkers after 4 s, and so long is a chunk: in chunks nobody is in a wrong track."""
    result = evaluate(Forgetful(), talk, metrics=("confusion",), run_options=run_options)
    (got,) = scores(result)
    assert got["confusion"] == pytest.approx((confusion,), abs=0.07)  # one window of 15 at the swap
    assert (min(got["si_snr"]) > 20) == (confusion == 0)


def test_what_may_have_gone_wrong_is_in_the_row_and_in_the_table(tmp_path):
    """The same sound in both tracks: nothing tells which track goes on in the next chunk."""

    class Alike(Forgetful):
        def forward(self, mixture):
            return self.level * mixture[:, None].repeat(1, 2, 1)

    noise = np.random.default_rng(0).standard_normal((2, 8 * RATE))
    mixtures = write(tmp_path / "set", s1=noise[0], s2=noise[1])
    options = {"mode": "chunks", "chunk_seconds": 4.0, "overlap_seconds": 1.0}
    result = evaluate(Alike(), mixtures, metrics=(), run_options=options)
    assert result.rows[0].warnings == "two talkers may have changed tracks at 2 of 2 joins: 0:00:03, 0:00:05"
    table, _ = result.write(tmp_path / "results")
    assert load_result(table).rows == result.rows
    with table.open() as file:
        assert [row["warnings"] for row in csv.DictReader(file)] == [result.rows[0].warnings]


def test_too_little_memory_is_a_failure_of_the_mixture(checkpoint, quiet):
    result = evaluate(load_model(checkpoint), quiet, run_options={"mode": "whole", "memory": "2M"})
    ((name, reason),) = result.failures
    assert name == "a"
    assert "1.94 MB may be used" in reason  # less what the tracks take


def test_options_that_make_no_sense_are_refused_before_any_work(checkpoint, quiet):
    for options in ({"mode": "halves"}, {"memory": "much"}, {"chunk_seconds": 4.0, "overlap_seconds": 3.0}):
        with pytest.raises(ValueError, match="must be"):
            evaluate(load_model(checkpoint), quiet, run_options=options)


def test_an_unfinished_evaluation_goes_on_in_its_own_mode_only(checkpoint, quiet, tmp_path, mark):
    model, journal = load_model(checkpoint), tmp_path / "new" / "journal"
    whole = {"mode": "whole", "memory": None}
    evaluate(model, quiet, metrics=(), run_options=whole, journal=journal)
    mark(journal)
    for other in (None, {"mode": "chunks"}, {"mode": "whole", "memory": "4G"}):
        with pytest.raises(ValueError, match="unfinished evaluation with other mode"):
            evaluate(model, quiet, metrics=(), run_options=other, journal=journal)
    (row,) = evaluate(model, quiet, metrics=(), run_options=whole, journal=journal).rows
    assert row.mean("si_snr") == 77  # of the first run


def test_processes_share_the_memory_that_one_recording_may_take(monkeypatch):
    monkeypatch.setattr("flasepformer.evaluation.separating.free_memory", lambda: 4_000_000_000)
    assert share_memory({"mode": "auto"}, 4) == {"mode": "auto", "memory": 500_000_000}
    for options, n_jobs in ((None, 4), ({"mode": "auto"}, 1), ({"mode": "auto", "memory": "3G"}, 4)):
        assert share_memory(options, n_jobs) == options


@pytest.mark.parametrize(
    ("separation", "label", "run_options"),
    [
        (None, "tiny", None),
        ({"mode": "network"}, "tiny", None),
        ({"mode": "whole", "memory": "4G"}, "tiny, whole", {"mode": "whole", "memory": "4G"}),
        (
            {"mode": "chunks", "memory": None, "chunk_seconds": 12.5, "overlap_seconds": 2.0},
            "tiny, chunks of 12.5 s",
            {"mode": "chunks", "memory": None, "chunk_seconds": 12.5, "overlap_seconds": 2.0},
        ),
    ],
)
def test_results_know_the_mode_they_were_made_in(tmp_path, separation, label, run_options):
    facts = {"model": {"name": "tiny"}, **({"separation": separation} if separation else {})}
    (tmp_path / "summary.json").write_text(json.dumps(facts))
    (tmp_path / "scores.csv").write_text("name,seconds,compute_seconds,SI-SNR,SI-SNR_1,error\na,1,1,2,2,\n")
    stored = load_result(tmp_path)
    assert (stored.label, stored.run_options) == (label, run_options)


def test_chunks_are_not_shortened_for_want_of_memory(tmp_path):  # issue 16
    model = SepReformer(SepReformerConfig(n_channels=8, n_heads=2, n_filters=16, n_stages=1))
    enough, need = (
        need_as_a_whole(model, 8 * RATE).memory_bytes,
        need_as_a_whole(model, 4 * RATE).memory_bytes,
    )
    assert need < enough - 10_000_000  # chunks of half the length would fit
    options = {"mode": "chunks", "chunk_seconds": 8, "overlap_seconds": 1, "memory": enough - 1_000_000}
    noise = np.random.default_rng(0).standard_normal((2, 9 * RATE))
    (row,) = evaluate(model, write(tmp_path / "set", s1=noise[0], s2=noise[1]), run_options=options).rows
    assert "0.1 minutes need about" in row.error
    assert "allow more (--memory)" in row.error


def test_the_model_and_not_the_free_memory_decides_what_auto_means(monkeypatch):  # issue 16
    linear, softmax = (
        SepReformer(SepReformerConfig(n_channels=8, n_heads=2, n_filters=16, n_stages=1, attention=attention))
        for attention in ("focused_linear", "softmax")
    )
    for free in (10**6, 10**12):
        monkeypatch.setattr("flasepformer.evaluation.separating.free_memory", lambda free=free: free)
        assert fix_options(linear, {"mode": "auto"}) == {"mode": "whole"}
        assert fix_options(softmax, {}) == {"mode": "chunks"}
    assert fix_options(softmax, {"mode": "whole"}) == {"mode": "whole"}
    assert fix_options(linear, None) is None


@pytest.mark.slow
@pytest.mark.parametrize("rate", [RATE, 16000])
def test_a_long_mixture_has_the_scores_of_the_same_in_memory(
    checkpoint, tmp_path, monkeypatch, rate
):  # issue 16
    """Issue 16: neither it nor its sources nor the tracks stand in memory."""
    rng = np.random.default_rng(0)
    times = np.arange(5 * rate) / rate
    low, high = (np.sin(f * times) * (np.sin(times + phase) > 0) for f, phase in ((3000, 0.0), (4400, 2.0)))
    folder = tmp_path / "set"
    write(folder, s1=low + 0.01 * rng.standard_normal(len(times)), s2=high)
    for name in ("s1", "s2", "mix"):
        samples, _ = soundfile.read(folder / name / "a.wav")
        samples = np.stack([samples, 0.5 * samples], axis=1)  # is mixed down
        soundfile.write(folder / name / "a.wav", samples, rate, "FLOAT")
    separator = Separator(load_model(checkpoint), "cpu", mode="whole")
    options = {"metrics": ("sdr", "sir", "sar", "confusion", "leakage"), "run_options": {"mode": "whole"}}
    (in_memory,) = evaluate(separator, MixtureFolder(folder), **options).rows
    monkeypatch.setattr("flasepformer.data.long_mixtures.LONG_SECONDS", 4.0)
    monkeypatch.setattr("flasepformer.data.mixture_sets.read_mixture", None)  # as a whole it cannot be read
    (in_blocks,) = evaluate(separator, MixtureFolder(folder), **options).rows
    assert not in_blocks.error
    assert in_blocks.scores.keys() == in_memory.scores.keys()
    for metric, values in in_memory.scores.items():
        assert in_blocks.scores[metric] == pytest.approx(values, abs=2e-3, nan_ok=True), metric
    assert (in_blocks.seconds, in_blocks.groups) == (5.0, in_memory.groups)


def test_the_sources_of_a_long_mixture_must_have_its_length(checkpoint, tmp_path, monkeypatch):  # issue 16
    mixtures = write(tmp_path / "set", s1=np.ones(5 * RATE), s2=np.ones(5 * RATE))
    soundfile.write(tmp_path / "set" / "s2" / "a.wav", np.ones(5 * RATE - 1), RATE, "FLOAT")
    monkeypatch.setattr("flasepformer.data.long_mixtures.LONG_SECONDS", 4.0)
    (row,) = evaluate(
        load_model(checkpoint), mixtures, metrics=("estoi",), run_options={"mode": "whole"}
    ).rows
    assert "differ in length: [40000, 40000, 39999] samples" in row.error
