"""Exported files give PyTorch's numbers, or are not there; one small network is exported for all tests."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import soundfile
import torch
from tests.models.conftest import tiny_config
from tests.models.test_export import miniature
from typer.testing import CliRunner

from flasepformer.cli import app
from flasepformer.export import ExportError, ProofFailed, Speech, export_model, exporting, proof, verify_file
from flasepformer.export.graphs import WholeRecording
from flasepformer.export.operators import missing_operators
from flasepformer.export.proof import prove, prove_quality
from flasepformer.metrics import separation_scores
from flasepformer.models import SepReformer, TFLocoformer, TFLocoformerConfig, load_model, save_model
from flasepformer.models.registry import registered_names
from flasepformer.onnx import ExportedSeparator, ExportedStream, OnnxError
from flasepformer.onnx.facts import open_session

pytestmark = pytest.mark.slow

SMALLEST = {"n_stages": 1, "n_encoder_blocks": 1, "n_decoder_blocks": 1, "layer_scale": 0.5}
SPEECH = Speech(Speech.shipped(8000).mixture[8000:12000], "half a second", lengths=(1 / 8000, 0.25))
"""Its first sample is nearly silent."""


SIZES = {"n_fft": 16, "hop_length": 8, "n_blocks": 1, "n_channels": 8, "n_groups": 2, "n_heads": 2,
         "attention_channels": 8, "feed_forward_channels": 8, "feed_forward_kernel": 3}  # fmt: skip
FAMILIES = ["tflocoformer", pytest.param("sepreformer", marks=pytest.mark.long)]
"""The first is traced in half the time."""


def small(family, **changes):
    if family == "sepreformer":
        return SepReformer(tiny_config(**SMALLEST, **changes))
    return TFLocoformer(TFLocoformerConfig(**SIZES, **changes))


def saved(network, folder):
    save_model(network.eval(), folder)
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    model = saved(small(request.param), folder / "model")
    found = export_model(model, folder / "talk.onnx", speech=SPEECH)
    network = load_model(model)
    return SimpleNamespace(
        path=folder / "talk.onnx", model=model, proof=found, network=network, family=request.param
    )


@pytest.fixture(scope="module")
def separator(exported):
    return ExportedSeparator(exported.path)


@pytest.fixture
def already_traced(exported, monkeypatch):
    """Let the next export begin with the graph that has been traced."""
    monkeypatch.setattr(exporting, "to_onnx", lambda graph: onnx.load(exported.path))


@pytest.fixture
def other_model(exported, tmp_path):
    torch.manual_seed(1)
    return saved(small(exported.family), tmp_path / "other")


def difference(estimates, expected):
    return np.linalg.norm(estimates - expected) / max(np.linalg.norm(expected), 1e-6)


@pytest.mark.parametrize("n_samples", [1, 2, 15, 16, 17, 18, 403, 4000])
def test_one_file_takes_every_length_and_batch(exported, separator, n_samples):
    torch.manual_seed(n_samples)
    mixture = torch.randn(2, n_samples).sign() * (0.5 + torch.rand(2, n_samples) / 2)  # none is silent
    with torch.no_grad():
        expected = exported.network(mixture).numpy()
    assert difference(separator.separate(mixture.numpy()), expected) < 1e-5
    assert difference(separator.separate(mixture[1].numpy()), expected[1]) < 1e-5


def test_the_proof_stands_beside_the_file(exported):
    written = json.loads(exported.path.with_suffix(".proof.json").read_text())
    assert [c["seconds"] for c in written["comparisons"]] == [1 / 8000, 0.25]
    assert max(c["rms_difference"] for c in written["comparisons"]) < 1e-5
    assert written["comparisons"][0]["si_snr_db"] is None
    assert written["comparisons"][1]["si_snr_db"] > 90
    assert "RMS difference" in exported.path.with_suffix(".proof.md").read_text()


def test_a_browser_has_every_operator(exported):
    kinds = {node.op_type for node in onnx.load(exported.path).graph.node}
    assert missing_operators(kinds) == []
    assert "MatMul" in kinds
    assert missing_operators({*kinds, "ScatterND"}) == ["ScatterND"]


def test_the_file_says_what_it_is(exported, separator):
    facts = separator.facts
    assert (facts.sample_rate, facts.n_sources, facts.kind, facts.quantized) == (8000, 2, "whole", "")
    assert (facts.family, facts.config["n_sources"]) == (exported.family, 2)
    assert facts.model_card.startswith("# ")
    assert b".py" not in exported.path.read_bytes()  # no lines and folders of the machine that made it
    (mixture,) = onnx.load(exported.path).graph.input
    assert (mixture.name, [axis.dim_param for axis in mixture.type.tensor_type.shape.dim]) == (
        "mixture",
        ["batch", "time"],
    )


def test_verify_repeats_the_proof_and_finds_other_weights(exported, other_model):
    assert verify_file(exported.path, exported.model, speech=SPEECH).limit == 1e-4
    with pytest.raises(ProofFailed, match=r"differs from PyTorch at 0\.25 s of speech|at 0\.000125 s"):
        verify_file(exported.path, other_model, speech=SPEECH)


def test_a_file_that_differs_is_not_left(already_traced, other_model, tmp_path):
    with pytest.raises(ProofFailed, match="differs from PyTorch at"):
        export_model(other_model, tmp_path / "talk.onnx", speech=SPEECH)
    assert list(tmp_path.iterdir()) == [other_model]


def test_an_operator_that_a_browser_lacks_leaves_no_file(exported, tmp_path, monkeypatch):
    def with_scattering(graph):
        proto = onnx.load(exported.path)
        proto.graph.node.append(onnx.helper.make_node("ScatterND", ["a", "b", "c"], ["d"]))
        return proto

    monkeypatch.setattr(exporting, "to_onnx", with_scattering)
    with pytest.raises(ExportError, match="lacks or breaks on: ScatterND"):
        export_model(exported.model, tmp_path / "talk.onnx", speech=SPEECH)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("kind", "least_db", "most_db"), [("fp16", 50, 90), ("int8", 20, 60)])
def test_packed_weights_cost_what_their_bits_say(
    exported, already_traced, tmp_path, monkeypatch, kind, least_db, most_db
):
    monkeypatch.setattr("flasepformer.export.quantizing.SMALLEST_WEIGHT", 16)
    found = export_model(exported.model, tmp_path / "talk.onnx", quantization=kind, speech=SPEECH)
    assert least_db < found.comparisons[-1].si_snr_db < most_db
    assert found.quantized == kind


@pytest.fixture
def mixtures(tmp_path):
    """Three mixtures of excerpts, as a folder."""
    rng = np.random.default_rng(0)
    for n in range(3):
        sources = [SPEECH.mixture[400 * n :][:2000], 0.1 * rng.standard_normal(2000)]
        for folder, track in zip(("mix_clean", "s1", "s2"), [np.sum(sources, axis=0), *sources], strict=True):
            (tmp_path / "set" / folder).mkdir(parents=True, exist_ok=True)
            soundfile.write(tmp_path / "set" / folder / f"{n}.wav", track, 8000, subtype="FLOAT")
    return tmp_path / "set"


def test_what_is_lost_on_mixtures_is_said_and_bounded(exported, separator, mixtures, monkeypatch):
    quality = prove_quality(separator, exported.network, mixtures)
    scores = []
    for n in range(3):
        tracks = [soundfile.read(mixtures / f / f"{n}.wav")[0] for f in ("s1", "s2", "mix_clean")]
        sources, mixture = torch.tensor(np.array(tracks[:2])).float(), torch.tensor(tracks[2]).float()
        with torch.no_grad():
            estimates = exported.network(mixture[None])[0]
        found = separation_scores(estimates, sources, mixture, with_sdr=False)
        scores.append(found.si_snr_improvement.mean().item())
    assert quality.n_mixtures == 3
    assert quality.torch_db == pytest.approx(np.mean(scores), abs=1e-4)
    assert abs(quality.lost_db) < 1e-3
    monkeypatch.setattr(proof, "LARGEST_LOSS_DB", {"": -1.0})
    with pytest.raises(ProofFailed, match=r"SI-SNRi on 3 mixtures .* Allowed are -1.0 dB"):
        prove_quality(separator, exported.network, mixtures)
    monkeypatch.setattr(proof, "N_MIXTURES", 0)
    with pytest.raises(ExportError, match="there is no mixture with a score"):
        prove_quality(separator, exported.network, mixtures)
    for path in (mixtures / "s2").iterdir():
        path.unlink()
    with pytest.raises(ExportError, match="the mixtures cannot be scored"):
        prove_quality(separator, exported.network, mixtures)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stream_gives_what_the_network_gives_live(family, tmp_path):
    torch.manual_seed(0)
    ahead = {"look_ahead": 2} if family == "sepreformer" else {}
    network = small(family, causal=True, normalize_variance=False, **ahead)
    model = saved(network, tmp_path / "model")
    found = export_model(model, tmp_path / "live.onnx", block_seconds=0.004, speech=SPEECH)
    assert max(c.rms_difference for c in found.comparisons) < 1e-5
    stream = ExportedStream(tmp_path / "live.onnx")
    assert (stream.block_length, stream.delay) == (32, network.lag)
    mixture = 0.1 * torch.randn(1, 320)
    with torch.no_grad():
        whole = network(mixture)[0].numpy()
    for _ in range(2):  # a new stream remembers nothing of the one before
        stream.reset()
        played = np.concatenate([stream.step(block) for block in mixture[0].numpy().reshape(-1, 32)], axis=-1)
        assert difference(played[:, network.lag :], whole[:, : 320 - network.lag]) < 1e-5


def test_a_network_that_hears_the_future_is_no_stream(exported, tmp_path):
    with pytest.raises(ExportError, match="only a causal model"):
        export_model(exported.model, tmp_path / "live.onnx", block_seconds=0.1)


def test_the_runner_needs_no_torch(exported, tmp_path):
    code = (
        "import sys\n"
        "for name in ('torch', 'safetensors', 'typer', 'onnx', 'onnxscript'):\n"
        "    sys.modules[name] = None\n"
        "import numpy, soundfile\n"
        "noise = 0.1 * numpy.random.default_rng(0).standard_normal(16000)\n"
        "soundfile.write(sys.argv[2] + '/talk.wav', noise, 16000)\n"
        "from flasepformer.onnx.__main__ import main\n"
        "sys.argv[1:] = [sys.argv[1], sys.argv[2] + '/talk.wav', sys.argv[2] + '/tracks']\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, exported.path, tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    tracks = [soundfile.read(path) for path in done.stdout.splitlines()]
    assert [(len(track), rate) for track, rate in tracks] == [(8000, 8000), (8000, 8000)]
    assert max(abs(track).max() for track, _ in tracks) < 1  # whatever the scale of the estimates


def test_tracks_add_up_to_the_mixture_as_well_as_they_can(separator):
    mixture = SPEECH.mixture[:2000]
    estimates, tracks = separator.separate(mixture), separator.tracks(mixture)
    gains = np.sum(tracks * estimates, axis=1) / np.sum(estimates**2, axis=1)
    assert tracks == pytest.approx(gains[:, None] * estimates, abs=1e-6)
    rest = mixture - tracks.sum(axis=0)
    assert np.linalg.norm(rest) <= np.linalg.norm(mixture)
    assert np.linalg.norm(tracks, axis=1).max() <= 2 * np.linalg.norm(mixture) + 1e-6


def test_a_file_of_something_else_is_refused_in_words(tmp_path, exported):
    (tmp_path / "noise.onnx").write_bytes(b"not a graph")
    with pytest.raises(OnnxError, match=r"noise\.onnx: onnxruntime cannot load it"):
        ExportedSeparator(tmp_path / "noise.onnx")
    with pytest.raises(OnnxError, match="there is no such file"):
        ExportedSeparator(tmp_path / "nothing.onnx")
    with pytest.raises(OnnxError, match="expected a file of kind 'stream', got 'whole'"):
        ExportedStream(exported.path)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["export", "default", "talk.bin"], 2, "is called .onnx"),
        (["export", "default", "talk.onnx", "--quantize", "int4"], 2, "fp16"),
        (["export", "no-such-model", "talk.onnx"], 3, "no model and no file is called"),
        (["export", "default", "talk.onnx", "--stream"], 3, "only a causal model"),
        (["export", "default-live", "a.onnx", "--stream", "--mixtures", "."], 2, "not scored on --mixtures"),
        (["verify", "missing.onnx", "default"], 3, "there is no such file"),
    ],
)
def test_the_commands_explain_what_is_wrong(arguments, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_the_verify_command_says_how_far_apart_they_are(exported, other_model, tmp_path):
    soundfile.write(tmp_path / "talk.wav", SPEECH.mixture, 8000)
    arguments = ["--speech", str(tmp_path / "talk.wav")]
    result = CliRunner().invoke(app, ["verify", str(exported.path), str(exported.model), *arguments])
    assert result.exit_code == 0, result.stderr
    assert "differs from PyTorch by" in result.stdout
    failed = CliRunner().invoke(app, ["verify", str(exported.path), str(other_model), *arguments])
    assert failed.exit_code == 1
    assert "error: the file differs from PyTorch at" in failed.stderr


@pytest.mark.long
@pytest.mark.parametrize("name", registered_names())
def test_every_registered_network_takes_every_length(name, tmp_path):
    network = miniature(name).requires_grad_(False)
    onnx.save(exporting.to_onnx(WholeRecording(network)), tmp_path / "graph.onnx")
    session = open_session(tmp_path / "graph.onnx")
    kinds = {node.op_type for node in onnx.load(tmp_path / "graph.onnx").graph.node}
    assert missing_operators(kinds) == []
    for n_samples in (1, 2, 64, 65, 66, 257, 4001):
        mixture = 0.1 * torch.randn(2, n_samples)
        (estimates,) = session.run(None, {"mixture": mixture.numpy()})
        assert difference(estimates, network(mixture).numpy()) < 1e-4


@pytest.mark.long
def test_the_default_model_is_exported_and_proved(tmp_path):
    found = export_model("default", tmp_path / "default.onnx")
    assert max(c.rms_difference for c in found.comparisons) < 1e-5
    assert prove(ExportedSeparator(tmp_path / "default.onnx"), load_model(), SPEECH).file_megabytes < 17
