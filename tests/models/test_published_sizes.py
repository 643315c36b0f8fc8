"""The published names at their real sizes, with random weights; and, with a network, the real thing."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from tests.models.published_files import CATALOGUE, SEVEN, entry, layout_of, place, publish
from tests.models.weights_server import WeightsServer
from torch.testing import assert_close

from flasepformer import Separator, load_model
from flasepformer.audio import read_audio, resample
from flasepformer.inference.estimates import need_as_a_whole
from flasepformer.metrics import best_permutation, pairwise, si_snr
from flasepformer.models import SepReformer, SepReformerConfig, TFLocoformer, TFLocoformerConfig
from flasepformer.models.registry import FAMILIES

ROOT = Path(__file__).parents[2]
REAL_SETTINGS = ROOT.parent / "shared" / "published"
"""The configurations as they were published, where they are at hand; else ours say the same."""

_SOFTMAX = {"attention": "softmax", "repeat_input": False, "normalize_variance": True, "dropout": 0.0}
_WHAMR = {**_SOFTMAX, "n_fft": 256, "feed_forward_kernel": 8}


def real_network(name):
    torch.manual_seed(0)
    match name:
        case "sepreformer-b-wsj0-2mix":
            return SepReformer(SepReformerConfig(attention="softmax", auxiliary_heads=True, pad_end=False))
        case "fla-sepreformer-b-libri2mix":
            return SepReformer(SepReformerConfig(auxiliary_heads=True, pad_end=False))
        case "fla-tflocoformer-m-libri2mix":
            return TFLocoformer(TFLocoformerConfig())
        case "tflocoformer-m-whamr":
            return TFLocoformer(TFLocoformerConfig(**_WHAMR, feed_forward_channels=192))
        case "tflocoformer-s-whamr":
            sizes = {"n_blocks": 4, "n_channels": 96, "feed_forward_channels": 128}
            return TFLocoformer(TFLocoformerConfig(**_WHAMR, **sizes))
    return TFLocoformer(TFLocoformerConfig(**_SOFTMAX, feed_forward_channels=384, feed_forward_kernel=4))


def real_settings(name):
    folder = REAL_SETTINGS / name
    return next((path.read_bytes() for path in folder.glob("*.yaml")), None) if folder.is_dir() else None


@pytest.mark.parametrize("name", SEVEN)
def test_the_networks_of_the_list_have_the_parameters_that_it_says(name):
    with torch.device("meta"):
        model = real_network(name)
    counted = sum(p.numel() for key, p in model.named_parameters() if not key.startswith("auxiliary_"))
    assert counted == CATALOGUE["models"][name]["parameters"]


@pytest.mark.parametrize("name", [name for name in SEVEN if "config" in CATALOGUE["models"][name]])
def test_the_config_of_the_list_is_that_of_the_network(name):
    published = CATALOGUE["models"][name]
    with torch.device("meta"):
        expected = real_network(name).config
    assert FAMILIES[published["family"]][0](**published["config"]) == expected


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in SEVEN if "config" in CATALOGUE["models"][name]])
def test_the_settings_as_published_say_what_the_list_says(name, tmp_path):
    settings = real_settings(name)
    if settings is None:
        pytest.skip("the configurations as published are not at hand")
    published = CATALOGUE["models"][name]
    _, weights = publish(real_network(name), layout_of(name), tmp_path / "made", settings)
    (tmp_path / ("config.yaml" if published["layout"] == "espnet" else "configs.yaml")).write_bytes(settings)
    path = tmp_path / Path(published["weights"]["path"]).name
    path.write_bytes(weights)
    assert load_model(path).config == FAMILIES[published["family"]][0](**published["config"])


@pytest.mark.long
@pytest.mark.parametrize("name", SEVEN)
def test_each_name_works_at_its_real_size_under_its_real_settings(name, tmp_path, monkeypatch):
    model = real_network(name).eval()
    settings, weights = publish(model, layout_of(name), tmp_path / "made", real_settings(name))
    published = CATALOGUE["models"][name]["weights"]
    if "size" in published:  # what else is in a file than numbers depends on PyTorch's version
        assert len(weights) == pytest.approx(published["size"], rel=0.004)
    changed = entry(name, settings, weights, model)
    (tmp_path / "models.yaml").write_text(yaml.safe_dump({"models": {name: changed}}))
    monkeypatch.setenv("FLASEPFORMER_MODELS", str(tmp_path / "models.yaml"))
    monkeypatch.setenv("FLASEPFORMER_HOME", str(tmp_path / "home"))
    with WeightsServer() as server:
        place(server, changed, settings, weights)
        for key, value in server.environment.items():
            monkeypatch.setenv(key, value)
        separator = Separator.from_pretrained(name, "cpu", accept_licence=True)
    begun = time.process_time()
    again = load_model(name)
    assert time.process_time() - begun < 10  # a tenth on an idle machine, most of it to build the network
    mixture = torch.randn(1, 800)
    with torch.inference_mode():
        expected = model(mixture)
        assert_close(again(mixture), expected, rtol=0, atol=0)
    tracks = separator.separate(0.1 * np.random.default_rng(0).standard_normal(1600).astype(np.float32), 8000)
    assert tracks.shape == (2, 1600)
    if "whamr" in name:
        assert separator.model.config.n_fft == 256


@pytest.mark.long
def test_a_softmax_model_takes_long_audio_in_chunks_within_the_stated_memory(tmp_path):
    torch.manual_seed(0)
    config = TFLocoformerConfig(n_blocks=1, n_channels=16, **_SOFTMAX, feed_forward_channels=16)
    model = TFLocoformer(config).eval()
    n_samples = 8000 * 60
    memory = round(0.8 * need_as_a_whole(model, n_samples).memory_bytes)
    separator = Separator(model, "cpu", memory=memory, chunk_seconds=10, overlap_seconds=2)
    waveform = 0.1 * np.random.default_rng(0).standard_normal(n_samples).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", waveform, 8000)
    report = separator.separate_file_with_report(tmp_path / "long.wav", tmp_path / "tracks")
    assert report.mode == "chunks"
    assert report.memory_bytes <= memory
    assert [soundfile.info(track).frames for track in report.tracks] == [n_samples, n_samples]


@pytest.mark.network
def test_the_real_smallest_clean_model_separates_the_demo_by_more_than_15_db(tmp_path):
    command = [sys.executable, "-m", "flasepformer", "separate", str(ROOT / "demo/mixture.flac")]
    command += ["--model", "best", "--out", str(tmp_path), "--device", "cpu"]
    subprocess.run(command, check=True, timeout=250)
    truth = torch.from_numpy(np.stack([_at_8k(ROOT / f"demo/source{i}.flac") for i in (1, 2)]))
    answer = torch.from_numpy(np.stack([_at_8k(tmp_path / f"mixture_speaker{i}.wav") for i in (1, 2)]))
    mixture = torch.from_numpy(_at_8k(ROOT / "demo/mixture.flac"))
    table = pairwise(si_snr, answer, truth)
    permutation = best_permutation(table)
    after = torch.stack([table[estimate, source] for source, estimate in enumerate(permutation.tolist())])
    improvement = (after - si_snr(mixture.expand_as(truth), truth)).mean().item()
    assert improvement > 15


@pytest.mark.network
@pytest.mark.parametrize("name", SEVEN)
def test_each_real_file_is_what_the_list_says(name, tmp_path, monkeypatch):
    monkeypatch.setenv("FLASEPFORMER_HOME", str(tmp_path))
    model = load_model(name, accept_licence=True)
    assert torch.isfinite(model(torch.randn(1, 800))).all()


def _at_8k(path):
    recording = read_audio(path)
    return resample(recording.samples[0], recording.sample_rate, 8000)
