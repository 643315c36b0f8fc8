import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from flasepformer.metrics import best_permutation, pairwise, reorder, separation_scores, si_snr


@pytest.mark.parametrize("n_sources", [1, 2, 4, 6])
def test_shuffled_sources_are_put_back_in_order(n_sources):
    sources = torch.randn(3, n_sources, 400, generator=torch.Generator().manual_seed(1))
    order = torch.stack([torch.randperm(n_sources) for _ in range(3)])
    estimates = reorder(sources, order)  # estimate k is source order[k]
    permutation = best_permutation(pairwise(si_snr, estimates, sources))
    assert torch.equal(permutation, order.argsort(-1))
    assert torch.equal(reorder(estimates, permutation), sources)


@given(seed=st.integers(0, 10**6), n_sources=st.integers(2, 6), ties=st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_assignment_is_the_best_of_all(seed, n_sources, ties):
    scores = 10 * torch.randn(n_sources, n_sources, generator=torch.Generator().manual_seed(seed))
    scores = scores.round() if ties else scores
    total = scores[best_permutation(scores), torch.arange(n_sources)].sum()
    best = max(
        sum(scores[estimate, source].item() for source, estimate in enumerate(permutation))
        for permutation in itertools.permutations(range(n_sources))
    )
    assert total.item() == pytest.approx(best, abs=1e-4)


def test_twenty_speakers_take_no_twenty_factorial():
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    scores = torch.zeros(20, 20)
    scores[order, torch.arange(20)] = 1.0
    assert torch.equal(best_permutation(scores), order)


def test_permutation_gives_the_index_of_the_estimate_for_each_source():
    scores = torch.tensor([[0.0, 0.0, 9.0], [9.0, 0.0, 0.0], [0.0, 9.0, 0.0]])  # rows: estimates
    assert best_permutation(scores).tolist() == [1, 2, 0]


def test_a_silent_source_takes_the_estimate_that_is_left():
    source = torch.randn(400, generator=torch.Generator().manual_seed(3))
    sources = torch.stack([torch.zeros(400), source])
    scores = separation_scores(torch.stack([source, 0.01 * source.flip(0)]), sources, source, with_sdr=False)
    assert scores.permutation.tolist() == [1, 0]
    assert scores.si_snr[0].isnan()
    assert scores.si_snr[1].item() == pytest.approx(100, abs=0.1)
    assert scores.sdr is None


def test_scores_are_those_of_the_matching_estimates():
    sources = torch.zeros(2, 40000)
    generator = torch.Generator().manual_seed(4)
    sources[0, :19000] = torch.randn(19000, generator=generator)
    sources[1, 21000:] = torch.randn(19000, generator=generator)
    sources = (sources - sources.mean(-1, keepdim=True)) / sources.norm(dim=-1, keepdim=True)
    estimates = (sources + 0.1 * sources.flip(0)).flip(0)
    scores = separation_scores(estimates, sources, sources.sum(0))
    assert scores.permutation.tolist() == [1, 0]
    for values in (scores.si_snr, scores.si_snr_improvement, scores.sdr, scores.sdr_improvement):
        assert values.tolist() == pytest.approx([20, 20], abs=0.05)


def test_wrong_counts_and_lengths_are_refused():
    with pytest.raises(ValueError, match=r"as many estimates as sources, got \(3, 2\)"):
        separation_scores(torch.rand(3, 80), torch.rand(2, 80), torch.rand(80))
    with pytest.raises(ValueError, match="agree in all but the axis of the sources"):
        separation_scores(torch.rand(2, 80), torch.rand(2, 81), torch.rand(81))
    with pytest.raises(ValueError, match="mixture must have the same shape"):
        separation_scores(torch.rand(2, 80), torch.rand(2, 80), torch.rand(81))


def test_a_batch_is_scored_one_by_one():
    generator = torch.Generator().manual_seed(5)
    estimates, sources = torch.randn(2, 4, 3, 200, generator=generator)
    together = best_permutation(pairwise(si_snr, estimates, sources))
    alone = [best_permutation(pairwise(si_snr, *pair)) for pair in zip(estimates, sources, strict=True)]
    assert_close(together, torch.stack(alone))
