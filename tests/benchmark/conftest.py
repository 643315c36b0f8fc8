import pytest

from flasepformer.benchmark import Case, CaseResult

FAKE_MODELS = """
import os, signal

import torch

print("a package that talks on import")


class Fake(torch.nn.Module):
    sample_rate = 8000

    def __init__(self, name):
        super().__init__()
        self.name = name

    def forward(self, mixture):
        if self.name == "takes-300-mb":
            return torch.ones(75_000_000)
        if self.name == "takes-little":
            return mixture[:, :1000] @ torch.ones(1000, 3)
        if self.name == "takes-4-gb":
            return torch.ones(1_000_000_000)
        if self.name == "is-killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("/home/someone/secret.wav is odd")
"""


@pytest.fixture
def fake_builder(tmp_path, monkeypatch):
    """Builder of models whose cost or fault is known: the name says which."""
    (tmp_path / "fake_models.py").write_text(FAKE_MODELS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    return "fake_models:Fake"


def result(model="fla-sepreformer-t", seconds=1.0, time=0.5, memory=100e6, status="ok", **settings):
    """A result as three rounds would have left it, the first slower and the last faster by a fifth."""
    done = status == "ok"
    return CaseResult(
        case=Case(model=model, seconds=seconds, **settings),
        status=status,
        round_seconds=[1.2 * time, time, 0.8 * time] if done else [],
        round_cpu_seconds=[time] * 3 if done else [],
        n_passes=3,
        peak_memories=[int(memory)] * 3 if done else [],
        n_parameters=1_000_000,
        weight_bytes=4_000_000,
        multiply_adds=int(5e9 * seconds),
    )
