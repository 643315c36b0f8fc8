"""The page listens to a microphone: Chromium's own, which plays a file."""

import json
import re
import threading

import numpy as np
import pytest
import soundfile
from tests.web.test_page import AXE, CHROMIUM, MIXTURE, WAIT, playwright

from flasepformer.audio import resample
from flasepformer.inference import StreamingSeparator
from flasepformer.web import PageServer, page_files

RATE = 8000


def launched(driver, microphone):
    """Start a browser whose microphone hears a file, over and over."""
    return driver.chromium.launch(
        executable_path=CHROMIUM,
        args=[
            "--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--use-fake-ui-for-media-stream",
            "--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={microphone}",
        ],
    )  # fmt: skip


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    samples, rate = soundfile.read(MIXTURE, dtype="float32")
    path = tmp_path_factory.mktemp("microphone") / "talk.wav"
    soundfile.write(path, resample(samples, rate, 48000), 48000, subtype="PCM_16")
    return path


@pytest.fixture(scope="module")
def address():
    with PageServer(page_files(), port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server.url
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(speech):
    with playwright.sync_playwright() as driver:
        browser = launched(driver, speech)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address, request):
    """The page, under its own policy, which axe cannot work under."""
    phone = {"viewport": {"width": 360, "height": 900}, "color_scheme": "dark", "bypass_csp": True}
    context = browser.new_context(**(phone if "axe" in request.node.name else {}))
    context.set_default_timeout(WAIT)
    page = context.new_page()
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(address)
    yield page
    assert page.errors == []
    context.close()


def downloaded(page, selector, tmp_path):
    with page.expect_download() as download:
        page.locator(selector).click()
    download.value.save_as(tmp_path / download.value.suggested_filename)
    return tmp_path / download.value.suggested_filename


def decibels(expected, got):
    return 10 * np.log10(np.sum(expected**2) / np.sum((got - expected) ** 2))


def found(piece, played):
    """Return how well a piece fits where it fits best, in dB."""
    n = len(piece) + len(played)
    at = int(
        np.argmax(np.fft.irfft(np.fft.rfft(played, n) * np.conj(np.fft.rfft(piece, n)), n)[: len(played)])
    )
    there = played[at : at + len(piece)]
    return decibels(there, piece) if len(there) == len(piece) else -np.inf


@pytest.mark.slow
def test_the_microphone_is_separated_live_as_by_pytorch(page, tmp_path, speech):
    page.locator("#listen").click()
    playwright.expect(page.locator("#live-time")).to_have_text(re.compile("0:0[3-9]|0:[1-5]"), timeout=WAIT)
    assert "s behind the microphone" in page.locator("#delay").inner_text()
    delay = re.compile(r"The tracks are (\d+) ms behind the microphone")
    (worker,) = page.workers
    worker.evaluate("() => { const until = Date.now() + 3000; while (Date.now() < until); }")
    playwright.expect(page.locator("#delay")).to_have_text(re.compile("too slow at the moment"), timeout=WAIT)
    playwright.expect(page.locator("#delay")).to_have_text(delay, timeout=WAIT)  # it has caught up
    assert max(page.locator(f"#meter-{n}").evaluate("meter => meter.value") for n in (1, 2)) > -60
    page.locator("#live-stop").click()
    page.wait_for_selector("#result:not([hidden])")
    paths = [downloaded(page, f".track:nth-child({n}) button[aria-label$=WAV]", tmp_path) for n in (1, 2, 3)]
    (mixture, *tracks), rates = zip(*(soundfile.read(path, dtype="float32") for path in paths), strict=True)
    assert rates == (RATE, RATE, RATE)
    assert 6 <= len(mixture) / RATE < 60

    separator = StreamingSeparator.from_pretrained("default-live", device="cpu")
    expected = np.concatenate([separator.feed(mixture), separator.flush()], axis=1)
    for theirs, ours in zip(expected, tracks, strict=True):
        assert decibels(theirs, ours) > 50  # 16-bit files

    report = json.loads(downloaded(page, "#report", tmp_path).read_text())
    assert (report["mode"], report["model"]) == ("live", "default-live")
    assert report["delay_seconds"] > 2.5  # when its worker was kept busy
    # The best fifth of a second is what the file says; a busy machine loses samples between.
    played, rate = soundfile.read(speech, dtype="float32")
    shifted = [resample(np.tile(played, 2)[shift:], rate, RATE) for shift in range(rate // RATE)]
    firsts = np.linspace(0, len(mixture) - RATE // 5, 20).astype(int)
    pieces = [mixture[first : first + RATE // 5] for first in firsts]
    assert max(found(piece, there) for there in shifted for piece in pieces if np.any(piece)) > 40

    page.locator("#better").click()
    page.wait_for_selector("#result:not([hidden])")
    assert page.locator("#better").is_hidden()
    assert page.locator("#time").inner_text().startswith("0:00 /")


@pytest.mark.slow
@pytest.mark.skipif(not AXE.exists(), reason="axe-core is missing: npm ci in web/")
def test_who_stops_before_anything_was_heard_is_back_where_he_was_and_axe_finds_nothing_meanwhile(page):
    page.locator("#listen").click()
    page.wait_for_selector("#live:not([hidden])")
    page.add_script_tag(path=str(AXE))
    found = page.evaluate("axe.run().then(result => result.violations)")
    assert [problem["id"] for problem in found] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.locator("#live-discard").click()
    playwright.expect(page.locator("#status")).to_have_text("Cancelled. Nothing was kept.")
    assert page.locator("#listen").is_visible()
