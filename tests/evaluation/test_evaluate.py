import csv
import json
import math
import sys

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from flasepformer.data import Mixture, MixtureFolder, MixtureList, MixtureSpec
from flasepformer.evaluation import METRICS, check_metrics, evaluate
from flasepformer.inference import OutputError, Separator


class SplitAt600Hz(nn.Module):
    """Separates a low talker from a high one by the spectrum, and leaks `leak` of each into the other."""

    def __init__(self, leak, sample_rate=8000):
        super().__init__()
        self.leak = nn.Parameter(torch.tensor(leak))
        self.sample_rate, self.n_sources = sample_rate, 2

    def forward(self, mixture):
        spectrum = torch.fft.rfft(mixture)
        low = torch.arange(spectrum.shape[-1]) * self.sample_rate / mixture.shape[-1] < 600
        parts = torch.stack(
            [torch.fft.irfft(spectrum * mask, mixture.shape[-1]) for mask in (~low, low)], dim=1
        )
        return 100 * (parts + self.leak * parts.flip(1))  # the level means nothing


def tone(frequency, seconds, rate=8000, amplitude=0.5):
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


@pytest.fixture
def folder(tmp_path):
    """Three mixtures of 0.5 s: equal levels, the second talker 20 dB weaker, and the second one silent."""
    for name in ("mix_clean", "s1", "s2"):
        (tmp_path / "tt" / name).mkdir(parents=True)
    for name, level in (("a", 1.0), ("b", 0.1), ("c", 0.0)):
        sources = {"s1": tone(500, 0.5), "s2": level * tone(1000, 0.5)}
        for source, waveform in sources.items():
            soundfile.write(tmp_path / "tt" / source / f"{name}.wav", waveform, 8000, "FLOAT")
        soundfile.write(tmp_path / "tt/mix_clean" / f"{name}.wav", sum(sources.values()), 8000, "FLOAT")
    return tmp_path / "tt"


def test_scores_are_those_the_mixtures_were_built_for(folder):
    """A leak of -40 dB: SI-SNRs of 40 dB for equal levels, 60 and 20 dB where one talker is 20 dB weaker."""
    result = evaluate(SplitAt600Hz(0.01), MixtureFolder(folder))
    a, b, c = result.rows
    assert [row.name for row in result.rows] == ["a", "b", "c"]
    assert a.scores["si_snr"] == pytest.approx((40, 40), abs=0.01)
    assert a.scores["mixture_si_snr"] == pytest.approx((0, 0), abs=0.01)
    assert a.scores["si_snr_improvement"] == pytest.approx((40, 40), abs=0.01)
    assert b.scores["si_snr"] == pytest.approx((60, 20), abs=0.01)
    assert b.scores["mixture_si_snr"] == pytest.approx((20, -20), abs=0.01)
    assert b.scores["si_snr_improvement"] == pytest.approx((40, 40), abs=0.01)
    assert c.scores["si_snr"][0] == pytest.approx(100, abs=0.5)
    assert math.isnan(c.scores["si_snr"][1])
    assert [row.seconds for row in result.rows] == [0.5, 0.5, 0.5]
    assert all(len(row.scores["sdr"]) == 2 for row in result.rows)


def test_one_talker_alone_has_no_improvement_and_no_infinity_hides_in_the_mean(folder):
    """The mixture is the source: its SI-SNR is infinite, and so is what any model loses to it."""
    result = evaluate(SplitAt600Hz(0.01), MixtureFolder(folder), metrics=("sdr", "sir", "sar", "leakage"))
    *_, alone = result.rows
    for metric in ("mixture_si_snr", "si_snr_improvement", "mixture_sdr", "sdr_improvement", "sir"):
        assert all(map(math.isnan, alone.scores[metric])), metric
    summary = result.summary()
    assert summary.mean["si_snr_improvement"] == pytest.approx(40, abs=0.01)
    assert summary.mean["leakage"] == pytest.approx(-40, abs=0.1)  # of the one mixture with one talker
    assert summary.not_applicable["si_snr"] == 1
    assert summary.not_applicable["si_snr_improvement"] == summary.not_applicable["sir"] == 2
    assert summary.not_applicable["leakage"] == 2


def test_a_source_that_is_missing_is_not_applicable():
    class OneTalker(MixtureList):
        names, n_sources = ("alone",), 1

        def __getitem__(self, index):
            low = torch.from_numpy(tone(500, 0.5)).float()
            return Mixture("alone", low, low[None], 8000)

    (row,) = evaluate(SplitAt600Hz(0.01), OneTalker((), 8000), metrics=("leakage",)).rows
    assert not row.error
    assert row.scores["si_snr"][0] == pytest.approx(100, abs=0.5)
    assert math.isnan(row.scores["si_snr"][1])
    assert row.scores["leakage"] == pytest.approx((-40,), abs=0.1)


def test_confusion_is_part_of_a_row(tmp_path):
    """Talkers in turn, and a model whose tracks swap after half of the time: SI-SNR cannot tell, this can."""

    class Swap(SplitAt600Hz):
        def forward(self, mixture):
            tracks, half = super().forward(mixture), mixture.shape[-1] // 2
            return torch.cat([tracks[..., :half], tracks.flip(1)[..., half:]], -1)

    turns = np.arange(64000) // 8000 % 2  # 8 s, one second each
    for name, waveform in (("s1", tone(500, 8) * turns), ("s2", tone(1000, 8) * (1 - turns))):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "a.wav", waveform, 8000, "FLOAT")
    (tmp_path / "mix").mkdir()
    mixture = tone(500, 8) * turns + tone(1000, 8) * (1 - turns)
    soundfile.write(tmp_path / "mix/a.wav", mixture, 8000, "FLOAT")
    for model, expected in ((SplitAt600Hz(0.01), 0), (Swap(0.01), 0.5)):
        (row,) = evaluate(model, MixtureFolder(tmp_path), metrics=("confusion",)).rows
        assert row.scores["confusion"] == pytest.approx((expected,)), model


@pytest.mark.slow
def test_every_metric_is_in_the_row_and_the_unprocessed_mixture_beside_it(folder):
    metrics = ("sdr", "sir", "sar", "estoi")
    summary = evaluate(SplitAt600Hz(0.1), MixtureFolder(folder), metrics=metrics).summary()
    # equal levels: 20 and 20 dB; one talker 20 dB weaker: 40 and 0 dB; one talker alone: nobody interferes
    assert summary.mean["sir"] == pytest.approx(20, abs=1)
    assert summary.mean["mixture_sir"] == pytest.approx(0, abs=3)  # 512 taps explain a part of another tone
    assert summary.mean["sar"] > 60
    assert summary.not_applicable["estoi"] == 1
    assert {metric for metric in METRICS if metric in summary.mean} == {
        *("si_snr", "si_snr_improvement", "sdr", "sdr_improvement", "sir", "sar", "estoi"),
        *("mixture_si_snr", "mixture_sdr", "mixture_sir", "mixture_sar", "mixture_estoi"),
    }


def test_unknown_metrics_and_missing_packages_are_refused_before_any_work(monkeypatch):
    with pytest.raises(ValueError, match="no metric is called snr; there are sdr, sir"):
        check_metrics(["sdr", "snr"])
    monkeypatch.setitem(sys.modules, "pystoi", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install .*\[perceptual\]"):
        check_metrics(["estoi"])


def test_the_summary_averages_over_talkers_then_mixtures_without_the_silent_source(folder):
    result = evaluate(SplitAt600Hz(0.01), MixtureFolder(folder), metrics=())
    summary = result.summary()
    assert summary.n_mixtures == 3
    assert summary.mean["si_snr"] == pytest.approx((40 + 40 + 100) / 3, abs=0.3)
    assert summary.median["si_snr_improvement"] == pytest.approx(40, abs=0.01)
    assert "sdr" not in summary.mean
    assert summary.real_time_factor == pytest.approx(sum(row.compute_seconds for row in result.rows) / 1.5)


def test_a_model_that_makes_it_worse_shows(folder):
    class NoisyTone(SplitAt600Hz):
        """Gives both talkers the low tone with some noise."""

        def forward(self, mixture):
            noise = torch.randn(mixture.shape, generator=torch.Generator().manual_seed(0))
            return (super().forward(mixture)[:, 1] + 0.5 * noise)[:, None].repeat(1, 2, 1)

    summary = evaluate(NoisyTone(0.0), MixtureFolder(folder), metrics=(), limit=2).summary()
    assert (summary.n_mixtures, summary.share_worse) == (2, 1.0)
    assert evaluate(SplitAt600Hz(0.01), MixtureFolder(folder), metrics=(), limit=2).summary().share_worse == 0


def test_one_bad_mixture_of_three_is_a_failure_and_the_others_are_scored(folder):
    (folder / "s1/b.wav").write_text("<html>404</html>")
    result = evaluate(SplitAt600Hz(0.01), MixtureFolder(folder), metrics=())
    assert [row.name for row in result.rows if row.scores] == ["a", "c"]
    ((name, reason),) = result.failures
    assert name == "b"
    assert result.summary().n_mixtures == 2
    assert "b.wav: not audio: looks like HTML" in reason


def test_estimates_that_are_not_finite_are_a_failure_and_not_a_silent_source(folder):
    result = evaluate(SplitAt600Hz(math.nan), MixtureFolder(folder), metrics=())
    assert result.summary().n_mixtures == 0
    assert {reason for _, reason in result.failures} == {"the model's estimates are not finite"}


def test_groups_are_summarised_each_on_its_own(tmp_path):
    for name, frequency in (("low", 500), ("high", 1000), ("lower", 400)):
        soundfile.write(tmp_path / f"{name}.wav", tone(frequency, 0.5), 8000, "FLOAT")
    specs = [
        MixtureSpec(
            "easy",
            (tmp_path / "low.wav", tmp_path / "high.wav"),
            ("x", "y"),
            (0, 0),
            (0, 0),
            ("M", "F"),
            ("p", "p"),
        ),
        MixtureSpec(
            "hard",
            (tmp_path / "low.wav", tmp_path / "lower.wav"),
            ("x", "z"),
            (0, 0),
            (0, 0),
            ("M", "M"),
            ("p", ""),
        ),
    ]
    result = evaluate(SplitAt600Hz(0.01), MixtureList(specs, 8000), metrics=())
    assert result.summary(sexes="F-M").mean["si_snr"] == pytest.approx(40, abs=0.01)
    assert result.summary(pairing="same sex").mean["si_snr"] < 5
    assert {key: list(groups) for key, groups in result.grouped().items()} == {
        "pairing": ["mixed sex", "same sex"],
        "sexes": ["F-M", "M-M"],
        "corpora": ["p-p", ""],
    }


def test_another_rate_goes_through_the_separator(tmp_path):
    for name in ("mix", "s1", "s2"):
        (tmp_path / name).mkdir()
    sources = {"s1": tone(500, 1.0, 16000), "s2": tone(1000, 1.0, 16000)}
    for name, waveform in (*sources.items(), ("mix", sum(sources.values()))):
        soundfile.write(tmp_path / name / "a.wav", waveform, 16000, "FLOAT")
    mixtures, model = MixtureFolder(tmp_path), SplitAt600Hz(0.01)
    (row,) = evaluate(Separator(model, "cpu"), mixtures, metrics=()).rows
    assert row.scores["si_snr"] == pytest.approx((40, 40), abs=3)
    ((_, reason),) = evaluate(model, mixtures, metrics=()).failures
    assert "the mixture is at 16000 Hz, but the model works at 8000 Hz" in reason


def test_a_model_for_another_number_of_talkers_is_refused(folder):
    model = SplitAt600Hz(0.0)
    model.n_sources = 3
    with pytest.raises(ValueError, match="separates 3 talkers, but the mixtures have 2"):
        evaluate(model, MixtureFolder(folder))


def test_table_and_summary_are_written_complete(folder, tmp_path):
    result = evaluate(SplitAt600Hz(0.01), MixtureFolder(folder), metrics=())
    table, summary = result.write(tmp_path / "new/results", model="splitter")
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1]["SI-SNR_1"]) == pytest.approx(60, abs=0.01)
    assert float(rows[1]["SI-SNR"]) == pytest.approx(40, abs=0.01)
    assert rows[2]["SI-SNR_2"] == "n/a"
    assert rows[2]["SI-SNR"] == rows[2]["SI-SNR_1"]
    content = json.loads(summary.read_text())
    assert content["model"] == "splitter"
    assert content["median"]["si_snr_improvement"] == pytest.approx(40, abs=0.01)
    assert sorted(path.name for path in table.parent.iterdir()) == ["scores.csv", "summary.json"]


def test_results_of_nothing_are_null_in_json(folder):
    for file in (folder / "s1").iterdir():
        file.write_bytes(b"")
    content = evaluate(SplitAt600Hz(0.01), MixtureFolder(folder), metrics=()).as_dict()
    assert json.loads(json.dumps(content, allow_nan=False))["real_time_factor"] is None
    assert len(content["failures"]) == 3


def test_a_file_in_place_of_the_folder_is_an_output_error(folder, tmp_path):
    (tmp_path / "results").write_text("in the way")
    result = evaluate(SplitAt600Hz(0.01), MixtureFolder(folder), metrics=())
    with pytest.raises(OutputError, match="it is a file"):
        result.write(tmp_path / "results")
