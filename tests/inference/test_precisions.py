import json

import pytest
import soundfile
import torch

from flasepformer.inference import DeviceError, Separator, precisions
from flasepformer.inference.precisions import pick_precision, slowdown


@pytest.fixture
def pretend(monkeypatch):
    """Let half precision take so many times as long as float32."""
    return lambda times: monkeypatch.setattr(precisions, "slowdown", lambda device, precision: times)


def test_auto_takes_the_faster_one(pretend):  # issue 16
    pretend(3.0)
    assert pick_precision("auto", "cpu") == ("float32", ())
    pretend(0.5)
    assert pick_precision("auto", "cpu") == ("bfloat16", ())


def test_half_precision_that_is_only_emulated_is_told_or_refused(pretend, separator, voices, tmp_path):
    pretend(3.0)  # issue 16
    slow = Separator(separator.model, "cpu", precision="bfloat16")
    soundfile.write(tmp_path / "talk.wav", voices(4000), 8000)
    slow.separate_file(tmp_path / "talk.wav", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "talk_separation.json").read_text())
    assert report["warnings"] == ["bfloat16 is only emulated on cpu, 3.0 times slower than float32"]
    pretend(100.0)
    with pytest.raises(DeviceError, match="100 times slower than float32 or more; use float32, or auto"):
        Separator(separator.model, "cpu", precision="float16")
    pretend(1.0)
    assert pick_precision("float16", "cpu") == ("float16", ())


def test_what_is_measured_is_a_ratio_and_measured_once():
    cpu = torch.device("cpu")
    first = slowdown(cpu, "bfloat16")
    assert 0.01 < first < 1e5
    assert slowdown(cpu, "bfloat16") == first
