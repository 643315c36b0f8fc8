"""Exported sets give the numbers of the whole; where it saves time, their sweeps are played with PyTorch."""

import json
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from tests.export.test_exporting import SIZES, SMALLEST, SPEECH, difference, saved, small
from tests.models.conftest import tiny_config
from typer.testing import CliRunner

from flasepformer.cli import app
from flasepformer.export import ExportError, ProofFailed, export_model, verify_file
from flasepformer.export.proof import caution
from flasepformer.export.sweeps import Level, Sweeping
from flasepformer.models import SepReformer, TFLocoformer, TFLocoformerConfig, load_model
from flasepformer.onnx import ExportedFacts, ExportedSet, OnnxError
from flasepformer.onnx.plan import Plan

pytestmark = pytest.mark.slow

NETWORKS = {
    "sepreformer": lambda: small("sepreformer"),
    "sepreformer, 3 stages": lambda: SepReformer(tiny_config(**{**SMALLEST, "n_stages": 3})),
    "sepreformer, 3 talkers": lambda: SepReformer(tiny_config(**SMALLEST, n_sources=3, masking=True)),
    "sepreformer, no padding": lambda: SepReformer(tiny_config(**SMALLEST, pad_end=False)),
    "sepreformer, levelled": lambda: SepReformer(tiny_config(**SMALLEST, normalize_variance=True)),
    "tflocoformer": lambda: small("tflocoformer"),
    "tflocoformer, not levelled": lambda: small("tflocoformer", normalize_variance=False),
}


class Played:
    """Has onnxruntime's way to run a graph, and plays it with PyTorch."""

    def __init__(self, graph):
        self.graph, self.names = graph, graph.signature().inputs

    def get_inputs(self):
        return [SimpleNamespace(name=name) for name in self.names]

    def run(self, outputs, inputs):
        values = [
            torch.from_numpy(value) if value.ndim else int(value) for value in map(inputs.get, self.names)
        ]
        if isinstance(self.graph, Level):
            return [self.graph(*values).numpy()]
        n = len(self.graph.leaves)
        with torch.no_grad():
            return [y.numpy() for y in self.graph(values[:n], values[n:-2], *values[-2:])]


@pytest.fixture
def played(tmp_path, monkeypatch):
    """Return a set of a network that is played with PyTorch instead of being translated."""

    def make(network, **options):
        sweeping = Sweeping(network)
        plan = sweeping.plan()
        graphs = {sweep.graph: graph for sweep, graph in zip(plan.sweeps, sweeping.sweeps, strict=True)}
        graphs["level.onnx"] = Level(network)
        monkeypatch.setattr(ExportedSet, "session", lambda self, name: Played(graphs[name]))
        facts = ExportedFacts(
            model="", family="", sample_rate=network.sample_rate, n_sources=network.n_sources, kind="long",
            quantized="", licence="", description="", model_card="", config={},
        )  # fmt: skip
        with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
            archive.writestr("plan.json", plan.to_json(facts.to_metadata()))
        return ExportedSet(tmp_path / "set.zip", **options)

    return make


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("piece_length", [1, 7])
def test_pieces_of_any_length_give_the_whole(name, piece_length, played):
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    exported = played(network, piece_length=piece_length)
    for n_samples in (1, 2, 18, 70) if piece_length == 1 else (17, 403):
        mixture = torch.randn(1, n_samples).sign() * (0.5 + torch.rand(1, n_samples) / 2)
        with torch.no_grad():
            expected = network(mixture)[0].numpy()
        assert difference(exported.separate(mixture[0].numpy()), expected) < 2e-5, n_samples


def test_frames_in_files_give_the_same_and_room_is_used_again(played, tmp_path):
    torch.manual_seed(0)
    network = NETWORKS["sepreformer, 3 stages"]().eval()
    mixture = torch.randn(1000).numpy()
    in_memory = played(network, piece_length=16)
    in_files = played(network, piece_length=16, memory_bytes=0, folder=tmp_path)
    assert np.array_equal(in_files.separate(mixture), in_memory.separate(mixture))
    # A room for each of the skips and their split, twice for two talkers; all later sequences fit into these.
    assert len(in_memory.plan.rooms) == 8
    freed = [room for sweep in in_memory.plan.sweeps for room in sweep.frees]
    assert sorted(freed) == list(range(8))


def test_progress_ends_at_one(played):
    exported = played(NETWORKS["tflocoformer"]().eval(), piece_length=8)
    told = []
    samples = SimpleNamespace(n_samples=200, read=lambda first, last: np.ones((1, last - first), np.float32))
    assert sum(some.shape[1] for some in exported.estimates(samples, told.append)) == 200
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)


def test_a_file_of_softmax_attention_says_what_it_takes():
    assert "square of the recording's length" in caution(small("tflocoformer", attention="softmax"))
    assert caution(small("tflocoformer")) == ""


def test_what_has_no_sums_is_refused_in_words():
    with pytest.raises(ExportError, match="softmax attention over a recording has no summary"):
        Sweeping(small("tflocoformer", attention="softmax"))
    with pytest.raises(ExportError, match="a causal model needs no sweeps: export it with --stream"):
        Sweeping(small("tflocoformer", causal=True, normalize_variance=False))


def smallest():
    """Return a network that is traced in the least time."""
    return TFLocoformer(TFLocoformerConfig(**{**SIZES, "n_fft": 8, "hop_length": 4}))


@pytest.fixture(scope="module", params=["tflocoformer", pytest.param("sepreformer", marks=pytest.mark.long)])
def exported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    torch.manual_seed(0)
    network = smallest() if request.param == "tflocoformer" else small(request.param)
    model = saved(network, folder / "model")
    proof = export_model(model, folder / "talk.zip", long=True, speech=SPEECH)
    return SimpleNamespace(path=folder / "talk.zip", model=model, proof=proof)


def test_a_set_is_proved_and_verified(exported):
    written = json.loads(exported.path.with_suffix(".proof.json").read_text())
    assert written["kind"] == "long"
    assert [c["seconds"] for c in written["comparisons"]] == [1 / 8000, 0.25, 0.25]
    assert max(c["rms_difference"] for c in written["comparisons"]) < 2e-5
    assert verify_file(exported.path, exported.model, speech=SPEECH).limit == 1e-4


def test_another_models_set_is_found_out(exported, tmp_path):
    torch.manual_seed(1)
    other = saved(smallest(), tmp_path / "other")
    with pytest.raises(ProofFailed, match="differs from PyTorch at"):
        verify_file(exported.path, other, speech=SPEECH)


@pytest.mark.parametrize("n_samples", [1, 16, 700])
def test_a_set_gives_pytorchs_numbers_in_onnxruntime(exported, n_samples):
    torch.manual_seed(n_samples)
    mixture = torch.randn(1, n_samples).sign() * (0.5 + torch.rand(1, n_samples) / 2)
    with torch.no_grad():
        expected = load_model(exported.model)(mixture)[0].numpy()
    assert (
        difference(ExportedSet(exported.path, piece_length=5).separate(mixture[0].numpy()), expected) < 2e-5
    )


def test_a_file_goes_through_without_torch(exported, tmp_path):
    noise = 0.1 * np.random.default_rng(0).standard_normal(16000)
    soundfile.write(tmp_path / "talk.wav", noise, 16000)
    code = (
        "import sys\n"
        "for name in ('torch', 'safetensors', 'typer', 'onnx', 'onnxscript'):\n"
        "    sys.modules[name] = None\n"
        "from flasepformer.onnx.__main__ import main\n"
        "sys.exit(main())\n"
    )
    arguments = [
        exported.path,
        tmp_path / "talk.wav",
        tmp_path / "tracks",
        "--memory-mb",
        "0",
        "--threads",
        "1",
    ]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tracks = [soundfile.read(path)[0] for path in done.stdout.splitlines()]
    mixture = soundfile.read(tmp_path / "talk.wav", dtype="float32")[0]
    from flasepformer.audio import resample

    expected = ExportedSet(exported.path).tracks(resample(mixture, 16000, 8000))
    assert difference(np.stack(tracks), expected) < 1e-5


def test_a_damaged_set_is_refused_in_words(exported, tmp_path):
    with pytest.raises(OnnxError, match="there is no such file"):
        ExportedSet(tmp_path / "nothing.zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("plan.txt", "{}")
    with pytest.raises(
        OnnxError, match=r"other\.zip: expected a set that `flasepformer export --long` wrote"
    ):
        ExportedSet(tmp_path / "other.zip")
    for text, why in [
        ("{", "its plan is damaged"),
        ('{"format": "9"}', "of another version"),
        ("[]", "damaged"),
    ]:
        with pytest.raises(OnnxError, match=why):
            Plan.from_json(text, "set.zip")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["export", "default", "talk.onnx", "--long"], 2, "is called .zip"),
        (["export", "default", "talk.zip"], 2, "is called .onnx"),
        (["export", "default", "talk.zip", "--long", "--stream"], 2, "two different files"),
        (["export", "default-live", "talk.zip", "--long"], 3, "export it with --stream"),
    ],
)
def test_the_command_explains_what_is_wrong(arguments, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_the_default_model_is_exported_for_long_recordings(tmp_path):
    proof = export_model("default", tmp_path / "default.zip", long=True)
    assert max(c.rms_difference for c in proof.comparisons) < 1e-5
    assert proof.file_megabytes < 23
