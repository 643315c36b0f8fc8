import pytest
import torch
from tests.training.conftest import changed

from flasepformer.training import precision, train
from flasepformer.training.optimizers import Muon
from flasepformer.training.precision import resolve_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(("times", "expected"), [(0.5, "bf16"), (1.5, "no")])
def test_auto_takes_what_is_faster_and_says_what_it_measured(monkeypatch, times, expected):
    monkeypatch.setattr(precision, "slowdown", lambda device, dtype: times)
    found, measured = resolve_precision("auto", CPU)
    assert found == expected
    assert measured == f"precision auto: {expected!r}; bfloat16 takes {times} times as long as float32 here"
    assert resolve_precision("bf16", CPU) == ("bf16", "")


@pytest.mark.slow
def test_a_run_says_what_it_measured(small_recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(precision, "slowdown", lambda device, dtype: 1.5)
    train(changed(small_recipe, precision="auto", optimizer="muon", n_steps=1), tmp_path / "run")
    assert "precision auto: 'no'" in capsys.readouterr().err


def test_muon_is_pytorchs_up_to_the_rounding_of_bfloat16():
    generator = torch.Generator().manual_seed(0)
    shapes = [*[(24, 40), (40, 24)] * 9, (24, 24)]  # more than are orthogonalized at once
    start, *gradients = ([torch.randn(shape, generator=generator) for shape in shapes] for _ in range(4))

    def moved(muon):
        parameters = [torch.nn.Parameter(value.clone()) for value in start]
        optimizer = muon(parameters)
        for gradient in gradients:
            for parameter, value in zip(parameters, gradient, strict=True):
                parameter.grad = value.clone()
            optimizer.step()
        return [p.detach() - before for p, before in zip(parameters, start, strict=True)]

    wanted = moved(lambda p: torch.optim.Muon(p, 1e-2, weight_decay=1e-2, adjust_lr_fn="match_rms_adamw"))
    for dtype in (torch.bfloat16, torch.float32):
        for got, expected in zip(moved(lambda p, d=dtype: Muon(p, 1e-2, 1e-2, d)), wanted, strict=True):
            assert (got - expected).norm() < 0.02 * expected.norm()


def test_muon_brings_singular_values_close_to_one():
    matrices = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(0))
    optimizer = Muon([torch.nn.Parameter(matrices[0])], 1, 0, torch.float32)
    singular = torch.linalg.svdvals(optimizer._orthogonalized(matrices, optimizer.param_groups[0]))
    assert 0.5 < singular.min() < singular.max() < 1.5
