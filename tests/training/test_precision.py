import pytest
import torch
from tests.training.conftest import changed

from flasepformer.training import precision, train
from flasepformer.training.optimizers import Muon
from flasepformer.training.precision import resolve_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(("half_ms", "expected"), [(1.0, "bf16"), (3.0, "no")])
def test_auto_takes_what_multiplies_faster_and_says_what_it_measured(monkeypatch, half_ms, expected):
    times = {torch.bfloat16: half_ms / 1e3, torch.float32: 2e-3}
    monkeypatch.setattr(precision, "matmul_seconds", lambda _, dtype: times[dtype])
    found, measured = resolve_precision("auto", CPU)
    assert found == expected
    assert f"{half_ms:.2f} ms in bfloat16 and 2.00 ms in float32" in measured
    assert resolve_precision("bf16", CPU) == ("bf16", "")


def test_products_take_some_time():
    assert 1e-6 < precision.matmul_seconds(CPU, torch.float32) < 10


def test_a_run_says_what_it_measured(small_recipe, tmp_path, capsys, monkeypatch):
    times = {torch.bfloat16: 3e-3, torch.float32: 2e-3}  # one process trains in one precision
    monkeypatch.setattr(precision, "matmul_seconds", lambda _, dtype: times[dtype])
    train(changed(small_recipe, precision="auto", optimizer="muon", n_steps=1), tmp_path / "run")
    assert "precision auto: 'no'" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_muon_in_float32_is_pytorchs_up_to_the_rounding_of_bfloat16(shape):
    generator = torch.Generator().manual_seed(0)
    start, *gradients = (torch.randn(shape, generator=generator) for _ in range(4))
    ends = []
    for dtype in (torch.bfloat16, torch.float32):
        parameter = torch.nn.Parameter(start.clone())
        optimizer = Muon([parameter], 1e-2, 1e-2, dtype)
        for gradient in gradients:
            parameter.grad = gradient.clone()
            optimizer.step()
        ends.append(parameter.detach() - start)
    assert (ends[0] - ends[1]).norm() / ends[1].norm() < 0.02
    singular = torch.linalg.svdvals(
        Muon([parameter], 1, 0, torch.float32)._orthogonalized(gradients[0], optimizer.param_groups[0])
    )
    assert 0.5 < singular.min() < singular.max() < 1.5
