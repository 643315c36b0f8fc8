import json

import pytest
import soundfile
import torch

from flasepformer.inference import DeviceError, Separator
from flasepformer.inference.precisions import UNUSABLE, judge_precision, pick_precision, slowdown

CPU = torch.device("cpu")


def test_auto_takes_the_faster_one():  # issue 16
    assert judge_precision("auto", 3.0, CPU) == ("float32", ())
    assert judge_precision("auto", 0.5, CPU) == ("bfloat16", ())


def test_half_precision_that_is_only_emulated_is_told_or_refused():  # issue 16
    warning = "bfloat16 is only emulated on cpu, 3.0 times slower than float32"
    assert judge_precision("bfloat16", 3.0, CPU) == ("bfloat16", (warning,))
    with pytest.raises(DeviceError, match="100 times slower than float32 or more; use float32, or auto"):
        judge_precision("float16", 100.0, CPU)
    assert judge_precision("float16", 1.0, CPU) == ("float16", ())


def test_what_is_measured_here_decides_and_stands_in_the_report(separator, voices, tmp_path):  # issue 16
    times = slowdown(CPU, "bfloat16")  # measured once in a process, so this is what decides below
    assert 0.01 < times < 1e5
    assert slowdown(CPU, "bfloat16") == times
    assert pick_precision("auto", "cpu") == judge_precision("auto", times, CPU)
    if times >= UNUSABLE:
        with pytest.raises(DeviceError, match="bfloat16 is only emulated on cpu"):
            Separator(separator.model, "cpu", precision="bfloat16")
        return
    half = Separator(separator.model, "cpu", precision="bfloat16")
    soundfile.write(tmp_path / "talk.wav", voices(4000), 8000)
    half.separate_file(tmp_path / "talk.wav", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "talk_separation.json").read_text())
    assert report["warnings"] == list(judge_precision("bfloat16", times, CPU)[1])
