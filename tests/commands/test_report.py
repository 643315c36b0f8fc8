import base64
import csv
import html
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile
from PIL import Image
from tests.networks import tiny
from typer.testing import CliRunner

from flasepformer.cli import app
from flasepformer.models import save_model

EVIL = "<script>alert('&')</script>"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, a second one, four mixtures of half a second, one of a hostile name, and their evaluations."""
    place = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(0)
    for name in ("mix_clean", "s1", "s2"):
        (place / "tt" / name).mkdir(parents=True)
    for name in ("a", "b", "c", EVIL.replace("/", "_")):
        s1, s2 = 0.1 * rng.standard_normal((2, 4000))
        for folder, waveform in (("s1", s1), ("s2", s2), ("mix_clean", s1 + s2)):
            soundfile.write(place / "tt" / folder / f"{name}.wav", waveform, 8000, "FLOAT")
    for seed, model in enumerate(("first", "second")):
        save_model(tiny(seed, layer_scale=0.5), place / model)
        evaluated = run(
            "evaluate", place / model, place / "tt", "--no-sdr", "--out", place / f"{model}-results"
        )
        assert evaluated.exit_code == 0, evaluated.output
    return place


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


class Page(HTMLParser):
    """Counts the elements of a page, and checks that each is closed in order."""

    VOID = ("meta", "img", "rect", "line", "circle")

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.addresses, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        assert not [name for name, _ in attributes if name.startswith("on")]
        if tag not in self.VOID or (tag == "rect" or tag == "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + "\n"


def test_a_page_of_one_model_holds_everything_and_fetches_nothing(place):
    out = place / "report.html"
    result = run("report", place / "first-results", "--out", out, "--examples", 1, "--device", "cpu")
    assert result.exit_code == 0, result.output
    content = out.read_text()
    page = Page(content)
    assert page.elements.count("article") == 3  # best, median, worst
    assert page.elements.count("audio") == page.elements.count("img") == 3 * 5
    assert all(address.startswith("data:") for address in page.addresses)
    assert not {"script", "link", "iframe", "object"} & {*page.elements}
    assert "default-src 'none'" in content
    assert "http" not in re.sub(r"http-equiv|base64,[\w+/=]+", "", content)
    summary = json.loads((place / "first-results/summary.json").read_text())
    assert f"{summary['mean']['si_snr_improvement']:.2f}" in page.text


def test_sounds_are_the_mixtures_and_sources_that_were_evaluated(place):
    out = place / "sounds.html"
    run("report", place / "first-results", "--out", out, "--examples", 4, "--device", "cpu")
    sounds = re.findall(r'src="data:audio/flac;base64,([^"]+)"', out.read_text())
    mixture, *tracks = (soundfile.read(io.BytesIO(base64.b64decode(sound))) for sound in sounds[:5])
    assert mixture[1] == 8000
    assert {len(waveform) for waveform, _ in (mixture, *tracks)} == {4000}
    np.testing.assert_allclose(tracks[0][0] + tracks[1][0], mixture[0], atol=1e-4)
    left = mixture[0] - tracks[2][0] - tracks[3][0]  # the estimates explain the mixture: they were scaled to
    assert np.sum(left * (tracks[2][0] + tracks[3][0])) == pytest.approx(0, abs=1e-2)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', out.read_text())
    first = Image.open(io.BytesIO(base64.b64decode(pictures[0])))
    assert first.size == (4000 // 64 + 1, 129)


def test_names_are_escaped(place):
    out = place / "names.html"
    run("report", place / "first-results", "--out", out, "--examples", 4, "--device", "cpu")
    content = out.read_text()
    assert EVIL.replace("/", "_") not in content
    assert html.escape(EVIL.replace("/", "_")) in content
    assert "script" not in Page(content).elements


def test_a_page_of_two_models_has_their_difference(place):
    out = place / "both.html"
    results = (place / "first-results", place / "second-results")
    result = run("report", *results, "--out", out, "--examples", 1, "--device", "cpu")
    assert result.exit_code == 0, result.output
    page = Page(out.read_text())
    assert page.elements.count("circle") == 4  # a dot for each mixture
    assert page.elements.count("svg") == 3  # two histograms and the scatter plot
    assert page.elements.count("audio") == 3 * 7
    compared = json.loads(run("compare", *results, "--json").stdout)["si_snr_improvement"]
    assert f"{compared['mean']:.2f}" in page.text
    assert "The mixtures that differ most" in page.text


def test_a_table_alone_makes_a_page_without_sounds_when_told_so(place):
    alone = place / "alone.csv"
    alone.write_bytes((place / "first-results/scores.csv").read_bytes())
    refused = run("report", alone, "--out", place / "alone.html")
    assert (refused.exit_code, "--examples 0" in refused.stderr) == (2, True)
    assert not (place / "alone.html").exists()
    assert run("report", alone, "--out", place / "alone.html", "--examples", 0).exit_code == 0
    assert "audio" not in Page((place / "alone.html").read_text()).elements
    given = ("--model", place / "first", "--mixtures", place / "tt", "--device", "cpu", "--overwrite")
    assert run("report", alone, "--out", place / "alone.html", *given).exit_code == 0


def test_another_model_than_was_evaluated_is_refused(place):
    options = ("--model", place / "second", "--out", place / "other.html", "--device", "cpu")
    result = run("report", place / "first-results", *options)
    assert (result.exit_code, "not those that were evaluated" in " ".join(result.stderr.split())) == (2, True)


@pytest.mark.slow
def test_examples_are_separated_in_the_mode_of_the_evaluation(place):
    """The network is given other levels than in a mode, so that other scores come out."""
    options = ("--no-sdr", "--mode", "whole", "--out", place / "whole-results")
    assert run("evaluate", place / "first", place / "tt", *options, "--device", "cpu").exit_code == 0
    pages, scores = {}, {}
    for name in ("first", "whole"):
        results = place / f"{name}-results"
        out = place / f"{name}-mode.html"
        result = run("report", results, "--out", out, "--examples", 4, "--device", "cpu")
        assert result.exit_code == 0, result.output
        pages[name] = Page(out.read_text()).text
        with (results / "scores.csv").open() as file:
            scores[name] = [float(row["SI-SNRi_1"]) for row in csv.DictReader(file)]
    assert "first, whole" in pages["whole"]
    assert "mode: whole" in pages["whole"]
    assert "mode: network" in pages["first"]
    for name, other in (("first", "whole"), ("whole", "first")):
        for own, foreign in zip(scores[name], scores[other], strict=True):
            assert f"SI-SNRi {own:.2f} dB" in pages[name]
            assert f"SI-SNRi {foreign:.2f} dB" not in pages[name]


@pytest.mark.slow
def test_the_place_for_the_page_is_checked_before_any_work(place):
    (place / "file").write_text("in the way")
    unloadable = ("--model", "no-such-model", "--device", "cpu")
    for out, reason in (
        (place / "file/report.html", "it is a file"),
        (place / "file/a/b.html", "Not a directory"),
    ):
        result = run("report", place / "first-results", "--out", out, *unloadable)
        assert (result.exit_code, reason in result.stderr) == (3, True), result.stderr
    folder = run("report", place / "first-results", "--out", place / "tt", "--overwrite", *unloadable)
    assert (folder.exit_code, "is a folder" in folder.stderr) == (2, True)
    refused = run("report", place / "first-results", "--out", place / "new/deep/report.html", *unloadable)
    assert (refused.exit_code, "no-such-model" in refused.stderr) == (3, True)
    assert not (place / "new").exists()
    assert (
        run("report", place / "first-results", "--out", place / "new/report.html", "--examples", 0).exit_code
        == 0
    )


def test_pages_that_exist_and_places_that_cannot_be_written(place):
    (place / "mine.html").write_text("mine")
    assert (
        run("report", place / "first-results", "--out", place / "mine.html", "--examples", 0).exit_code == 2
    )
    assert (place / "mine.html").read_text() == "mine"
    below_a_file = place / "mine.html" / "report.html"
    result = run("report", place / "first-results", "--out", below_a_file, "--examples", 0)
    assert (result.exit_code, "mine.html" in result.stderr) == (3, True)
    assert run("report", place / "tt", "--out", place / "new.html").exit_code in (2, 3)  # no results there
