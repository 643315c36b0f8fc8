import itertools
import random

import pytest
import torch

from flasepformer.training import OptimizationConfig, Plateau
from flasepformer.training.schedules import learning_rate, stepwise_decay


@pytest.mark.parametrize("n_steps", [1, 5])
def test_every_training_that_may_begin_reaches_its_peak(n_steps):
    n_refused = 0
    for warmup_steps, decay_steps in itertools.product(range(n_steps + 2), repeat=2):
        lengths = {"n_steps": n_steps, "warmup_steps": warmup_steps, "decay_steps": decay_steps}
        try:
            OptimizationConfig(**lengths)
        except ValueError:
            n_refused += 1
        else:
            assert max(learning_rate(step, peak=0.5, **lengths) for step in range(n_steps)) == 0.5
    assert n_refused == (n_steps + 2) ** 2 - (n_steps + 1) * (n_steps + 2) // 2


@pytest.mark.parametrize(("factor", "patience"), [(0.8, 2), (0.5, 3), (0.5, 0)])
def test_plateau_follows_torch(factor, patience):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    expected = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=factor, patience=patience, threshold=0.0, eps=0.0
    )
    plateau, draw = Plateau(), random.Random(0)
    for epoch in range(200):
        score = min(epoch, 60) / 10 + draw.random()  # rises, then stalls
        expected.step(score)
        plateau.update(score, factor=factor, patience=patience)
        assert plateau.scale == pytest.approx(optimizer.param_groups[0]["lr"]), epoch
    assert plateau.scale < 1e-3


def test_a_score_that_is_not_a_number_counts_as_stalled():
    plateau = Plateau()
    for score in (1.0, float("nan"), float("nan")):
        plateau.update(score, factor=0.5, patience=1)
    assert (plateau.scale, plateau.best_db) == (0.5, 1.0)


def test_the_share_of_the_auxiliary_loss_follows_sepreformer():
    shares = [0.4 * stepwise_decay(epoch, factor=0.8, start_epoch=100, every=5) for epoch in range(200)]
    assert shares[:100] == [0.4] * 100
    assert shares[100:105] == pytest.approx([0.32] * 5)
    assert shares[105] == pytest.approx(0.256)
    assert shares[199] == pytest.approx(0.4 * 0.8**20)
