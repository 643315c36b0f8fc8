"""The page in a real browser: Debian's Chromium, driven by Playwright."""

import http.client
import json
import re
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

import flasepformer
from flasepformer.audio import resample
from flasepformer.web import PageServer, page_files

playwright = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is missing: pip install '.[browser]'"
)
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("Chromium is missing: apt-get install chromium", allow_module_level=True)

ROOT = Path(__file__).parents[2]
MIXTURE = ROOT / "demo/mixture.flac"
AXE = ROOT / "web/node_modules/axe-core/axe.min.js"
WAIT = 240_000  # ms; the machine may have other work


@pytest.fixture(scope="module")
def server():
    with PageServer(page_files(), port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        )
        yield browser
        browser.close()


@pytest.fixture
def context(browser):
    context = browser.new_context(viewport={"width": 1000, "height": 1100})
    context.set_default_timeout(WAIT)
    yield context
    context.close()


@pytest.fixture
def page(context, server):
    page = context.new_page()
    page.asked, page.errors = [], []
    page.on("request", lambda request: page.asked.append((request.method, request.url)))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(server.url)
    yield page
    assert page.errors == []


def drop(page, path):
    page.set_input_files("#file", str(path))
    page.wait_for_selector("#result:not([hidden]), #failed:not([hidden])")


def track(page, tmp_path, index, kind="wav"):
    with page.expect_download() as download:
        page.locator(".track").nth(index).get_by_text(kind.upper()).click()
    download.value.save_as(tmp_path / f"track.{kind}")
    return soundfile.read(tmp_path / f"track.{kind}", dtype="float32")


@pytest.mark.slow
def test_a_mixture_is_separated_as_by_pytorch_played_and_nothing_is_sent(page, server, tmp_path):
    samples, recorded_rate = soundfile.read(MIXTURE, dtype="float32")
    rate = 8000
    speech = 0.5 * resample(samples, recorded_rate, rate)  # no track has to be turned down
    soundfile.write(tmp_path / "two.wav", speech, rate, subtype="FLOAT")
    drop(page, tmp_path / "two.wav")
    expected = flasepformer.Separator.from_pretrained(device="cpu").separate(speech, rate)
    for index in (1, 2):
        got, got_rate = track(page, tmp_path, index)
        assert (len(got), got_rate) == (len(speech), rate)
        difference = got - expected[index - 1]
        assert 10 * np.log10(np.sum(expected[index - 1] ** 2) / np.sum(difference**2)) > 50  # 16-bit files
    in_flac, flac_rate = track(page, tmp_path, 2, "flac")
    assert flac_rate == rate
    assert np.array_equal(in_flac, got)
    wav, flac = ((tmp_path / f"track.{kind}").stat().st_size for kind in ("wav", "flac"))
    assert flac < 0.75 * wav

    assert page.evaluate("crossOriginIsolated")
    assert page.locator("#time").inner_text().startswith("0:00 /")
    page.locator("#play").press("ArrowRight")
    assert page.locator("#time").inner_text().startswith("0:05 /")
    page.locator("#play").press(" ")
    assert page.locator("#play").inner_text() == "Pause"
    playwright.expect(page.locator("#time")).to_contain_text("0:06 /", timeout=30_000)
    page.locator("#play").press(" ")
    assert page.locator("#play").inner_text() == "Play"
    page.locator("#play").press("2")
    assert page.locator("[data-key=solo1]").get_attribute("aria-pressed") == "true"
    assert page.locator(".track.silenced").count() == 2
    page.locator("#play").press("+")
    assert page.locator("#view-label").is_visible()
    page.locator("#play").press("Home")
    page.locator("#loop-from").click()
    page.locator("#loop-from").press("ArrowRight")
    page.locator("#loop-to").click()
    assert page.locator("#loop").inner_text() == "Loop 0:00 to 0:05"
    page.get_by_label("Name of talker 1").fill("Ann")
    assert page.get_by_label("Mute Ann").is_visible()
    with page.expect_download() as download:
        page.locator("#report").click()
    report = json.loads(Path(download.value.path()).read_text())
    assert report["tracks"] == ["Ann", "Talker 2"]
    assert report["mode"] == "whole"

    assert {method for method, _ in page.asked} == {"GET"}
    assert all(url.startswith((server.url, f"blob:{server.url}")) for _, url in page.asked)


@pytest.mark.slow
def test_a_longer_recording_of_another_rate_keeps_its_length_and_its_talkers(page, tmp_path):
    samples, rate = soundfile.read(MIXTURE, dtype="float32")
    long = 0.5 * resample(np.tile(samples, 6)[: 70 * rate + 1], rate, 44100)
    soundfile.write(tmp_path / "long.wav", np.stack([long, long], 1), 44100)
    drop(page, tmp_path / "long.wav")
    assert page.locator("#failed").is_hidden()
    expected = flasepformer.Separator.from_pretrained(device="cpu", mode="chunks").separate(long, 44100)
    got = [track(page, tmp_path, index)[0] for index in (1, 2)]
    for ours, theirs in zip(got, expected, strict=True):
        assert len(ours) == len(long)
        assert 10 * np.log10(np.sum(theirs**2) / np.sum((ours - theirs) ** 2)) > 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        pytest.param(b"", "The file is empty", marks=pytest.mark.slow),
        (b"this is no audio " * 100, "This file cannot be read"),
        pytest.param(MIXTURE.read_bytes()[:60], "is empty|cannot be read", marks=pytest.mark.slow),
    ],
)
def test_a_broken_file_gets_a_sentence_and_the_page_goes_on(page, tmp_path, content, sentence):
    (tmp_path / "broken.flac").write_bytes(content)
    drop(page, tmp_path / "broken.flac")
    playwright.expect(page.locator("#failure")).to_contain_text(re.compile(sentence))
    assert page.locator("#choose").is_visible()


@pytest.mark.slow
def test_silence_gives_silent_tracks_and_says_so(page, tmp_path):
    soundfile.write(tmp_path / "silent.wav", np.zeros(16000, np.float32), 16000)
    drop(page, tmp_path / "silent.wav")
    playwright.expect(page.locator("#notes")).to_contain_text("The recording is silent")


@pytest.mark.slow
def test_recording_without_permission_gets_a_sentence(page):
    page.locator("#record").click()
    playwright.expect(page.locator("#failure")).to_contain_text("microphone")


@pytest.mark.slow
def test_cancelling_ends_the_work_and_keeps_nothing(page):
    page.set_input_files("#file", str(MIXTURE))
    page.locator("#cancel").click()
    playwright.expect(page.locator("#status")).to_have_text("Cancelled. Nothing was kept.")
    assert page.locator("#result").is_hidden()


@pytest.mark.slow
def test_after_the_first_visit_the_page_works_without_a_network(context, tmp_path):
    with PageServer(page_files(), port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        page = context.new_page()
        page.goto(server.url)
        page.evaluate("navigator.serviceWorker.ready.then(() => true)")
        port = server.server_address[1]
        server.shutdown()
        thread.join()
    time.sleep(0.1)
    with pytest.raises(OSError, match="refused"):  # it is gone
        http.client.HTTPConnection("127.0.0.1", port).request("GET", "/")
    page.reload()
    drop(page, MIXTURE)
    assert page.locator("#failed").is_hidden()
    assert page.locator(".track").count() == 3


@pytest.mark.slow
@pytest.mark.skipif(not AXE.exists(), reason="axe-core is missing: npm ci in web/")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1000])
def test_axe_finds_nothing(browser, server, scheme, width, tmp_path):
    context = browser.new_context(
        color_scheme=scheme, viewport={"width": width, "height": 900}, bypass_csp=True
    )
    context.set_default_timeout(WAIT)
    page = context.new_page()
    page.goto(server.url)

    def problems():
        page.add_script_tag(path=str(AXE))
        found = page.evaluate("axe.run().then(result => result.violations)")
        return [(problem["id"], node["html"]) for problem in found for node in problem["nodes"]]

    assert problems() == []
    soundfile.write(tmp_path / "silent.wav", np.zeros(16000, np.float32), 16000)
    drop(page, tmp_path / "silent.wav")
    assert problems() == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    context.close()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_two_hours_fit_in_a_tab(page, tmp_path):
    samples, rate = soundfile.read(MIXTURE, dtype="float32")
    speech = resample(samples, rate, 8000)
    n_samples = 2 * 3600 * 8000
    with soundfile.SoundFile(tmp_path / "long.flac", "w", 8000, 1) as file:
        for first in range(0, n_samples, len(speech)):
            file.write(speech[: n_samples - first])
    page.set_default_timeout(1_700_000)
    drop(page, tmp_path / "long.flac")
    assert page.locator("#failed").is_hidden()
    assert page.locator("#time").inner_text() == "0:00 / 2:00:00"
    in_wav, in_flac = (track(page, tmp_path, 1, kind)[0] for kind in ("wav", "flac"))
    assert len(in_wav) == n_samples
    assert np.array_equal(in_wav, in_flac)
