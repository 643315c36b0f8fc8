import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

import flasepformer
from flasepformer import Separator, inference
from flasepformer.training import TrainingError


def test_a_batch_is_separated_recording_by_recording(separator, voices):  # issue 16
    batch = np.stack([voices(8000, seed=seed) for seed in range(3)])
    one_by_one = np.stack([separator.separate(mixture, 8000) for mixture in batch])
    assert one_by_one.shape == (3, 2, 8000)
    np.testing.assert_array_equal(separator.separate_batch(batch, 8000), one_by_one)
    tensors = separator.separate_batch(torch.from_numpy(batch)[:, None], 8000)  # (batch, channel, time)
    np.testing.assert_array_equal(tensors.numpy(), one_by_one)
    shares = []
    separator.separate_batch(batch, 8000, progress=lambda step, share: shares.append(share))
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_a_batch_taken_for_channels_is_told(separator, voices):  # issue 16
    rng = np.random.default_rng(0)
    loudness = np.repeat(rng.random((3, 10)) ** 3, 1600, axis=1)  # as speech: loud and quiet by turns
    noise = (loudness * rng.standard_normal((3, 16_000))).astype(np.float32)
    with pytest.warns(UserWarning, match="separate_batch separates recordings one by one"):
        separator.separate(0.1 * noise, 8000)
    with pytest.warns(UserWarning, match="if they are two recordings, use separate_batch"):
        separator.separate(0.1 * noise[:2], 8000)
    with pytest.raises(flasepformer.InputError, match=r"separate_batch takes \(batch, channel, time\)"):
        separator.separate(noise[None], 8000)
    with pytest.raises(flasepformer.InputError, match=r"must be \(batch, time\) .* got \(16000,\)"):
        separator.separate_batch(noise[0], 8000)


def test_a_separator_shows_its_model_device_and_rate(separator):
    name = separator.description["name"]
    assert repr(separator) == f"Separator(model={name!r}, device='cpu', sample_rate=8000, n_sources=2)"


def test_all_our_errors_have_one_base_class():
    kinds = [getattr(flasepformer, name) for name in flasepformer.__all__ if name[0].isupper()]
    errors = [kind for kind in kinds if issubclass(kind, Exception)]
    assert len(errors) == 12
    for error in (*errors, TrainingError):
        assert issubclass(error, flasepformer.FlasepformerError)
    assert issubclass(inference.OutputError, OSError)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda separator, out: Separator("default"), "from_pretrained takes a name"),
        (lambda separator, out: Separator(separator.model, 3.5), r"no device is called 3\.5"),
        (lambda separator, out: separator.separate([0.0], 8000), "numpy array or a torch tensor, got list"),
        (lambda separator, out: separator.separate(np.zeros(9), "8 kHz"), "a number of Hz, got '8 kHz'"),
        (lambda separator, out: separator.separate(np.zeros(9), None), "a number of Hz, got None"),
        (
            lambda separator, out: separator.separate_file(np.zeros(9), out),
            "Separator.separate takes samples",
        ),
        (lambda separator, out: separator.separate_file("a.wav", None), "path of a folder, got None"),
        (lambda separator, out: separator.separate_batch([1, 2], 8000), "got list"),
    ],
)
def test_wrong_kinds_of_input_are_errors_of_ours(separator, tmp_path, call, message):  # issue 16
    with pytest.raises(flasepformer.FlasepformerError, match=message):
        call(separator, tmp_path)


def test_a_callback_can_cancel_and_nothing_is_left(separator, voices, tmp_path):  # issue 16
    soundfile.write(tmp_path / "talk.wav", voices(16_000), 8000)
    steps = []

    def stop(step, share):
        steps.append(step)
        if step == "separating":
            raise flasepformer.Cancelled("enough")

    with pytest.raises(flasepformer.Cancelled, match="enough"):
        separator.separate_file(tmp_path / "talk.wav", tmp_path / "out", progress=stop)
    assert [*(tmp_path / "out").iterdir()] == []
    with pytest.raises(flasepformer.Cancelled):
        separator.separate(voices(16_000), 8000, progress=stop)
    assert steps.count("separating") == 2


@pytest.mark.long
def test_a_type_checker_knows_what_a_model_gives(tmp_path):  # issue 16
    (tmp_path / "mine.py").write_text(
        "import flasepformer, torch\n"
        "reveal_type(flasepformer.load_model()(torch.zeros(1, 8000)))\n"
        "reveal_type(flasepformer.load_model().sample_rate)\n"
    )
    words = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--cache-dir",
        tmp_path / "cache",
        tmp_path / "mine.py",
    ]
    said = subprocess.run(words, capture_output=True, text=True).stdout
    assert 'Revealed type is "torch._tensor.Tensor"' in said
    assert 'Revealed type is "int"' in said.replace("builtins.", "")
