"""What every layer must keep to, whoever plays it."""

import copy
import io

import torch
from torch.testing import assert_close

from flasepformer.layers import GlobalLayer, WholeLayer
from flasepformer.running import Live, Made, Pieces, Whole

EXACT = {"rtol": 1e-9, "atol": 1e-9}


def verify_layer(layer, x, unit=1):
    """Hold a layer, on random features, against all that it declares.

    Args:
        layer: In double precision.
        x: (batch, frames, ...), frames a multiple of the stride and enough for its neighbours.
        unit: Entries of the batch that belong together.
    """
    layer = layer.double().eval()
    for name, parameter in [*layer.named_parameters(), *layer.named_buffers()]:
        if parameter.is_floating_point():
            with torch.no_grad():
                parameter.copy_(0.5 + torch.rand_like(parameter) if name.endswith("var") else parameter)
                parameter.add_(0.1 * torch.rand_like(parameter))
    x = x.double().requires_grad_()
    whole = Whole().through(x, layer)
    upstream = torch.randn_like(whole)
    leaves = [x, *layer.parameters()]
    gradients = torch.autograd.grad(whole, leaves, upstream, allow_unused=True)

    batch, n_frames, *rest = layer.shape(tuple(x.shape))
    assert whole.shape == (batch, n_frames // layer.stride, *rest)

    def same(y):
        assert_close(y, whole, **EXACT)
        for own, expected in (
            ()
            if not y.requires_grad
            else zip(torch.autograd.grad(y, leaves, upstream, allow_unused=True), gradients, strict=True)
        ):
            assert (own is None) == (expected is None)
            assert own is None or torch.allclose(own, expected, rtol=1e-7, atol=1e-9)

    if not (isinstance(layer, GlobalLayer) and layer.causal):
        for length in (1, 3, 8, n_frames):
            with torch.no_grad():
                same(in_pieces(layer, x, length))  # with prepared layers
            if not isinstance(layer, WholeLayer):  # which is applied in place
                same(in_pieces(layer, x, length))
    if layer.causal:
        for length in (1, 3, n_frames // layer.stride):
            same(in_steps(layer, x, length * layer.stride))
    with torch.no_grad():
        verify_neighbours(layer, x.detach())
        assert_close(layer.prepared()(x), whole.detach(), **EXACT)
        alone = torch.cat([layer(part) for part in x.split(unit)])
        assert_close(alone, whole.detach(), **EXACT)
        again = copy.deepcopy(layer)
        for parameter in again.parameters():
            parameter.zero_()
        file = io.BytesIO()
        torch.save(layer.state_dict(), file)
        file.seek(0)
        again.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(again(x), layer(x))


def in_pieces(layer, x, length):
    """Play a layer in pieces cut anywhere."""
    run = Pieces(length, shortest=1)
    run.threads.n_threads = 1  # other threads keep no gradients
    made = run.through(Made(tuple(x.shape), lambda first, last: x[:, first:last]), layer)
    return torch.cat([y for _, y in run.sink(made, lambda y: y)], dim=1)


def in_steps(layer, x, length):
    """Play a layer live; between two steps its state goes through a file."""
    state, steps = {}, []
    for block in x.split(length, dim=1):
        run = Live(state)
        steps.append(run.through(block, layer))
        state = run.state
        assert all(len(value) % len(x) == 0 for value in state.values())
    return torch.cat(steps, dim=1)


def verify_neighbours(layer, x):
    """Hold the frames that a frame depends on, and the NaN that it must not see, against the declaration."""
    if isinstance(layer, WholeLayer):
        return
    apply = layer
    if isinstance(layer, GlobalLayer):
        if layer.causal:
            later = x.clone()
            later[:, 7:] = 1e6 * torch.randn_like(later[:, 7:])
            assert_close(layer(later)[:, :7], layer(x)[:, :7], **EXACT)
            return
        given = layer.given(layer.summarize(x))

        def apply(y):
            return given(y, 0)

    stride, halo = layer.stride, layer.halo
    middle = x.shape[1] // stride // 2
    first = stride * middle - halo
    last = stride * middle + (stride - 1 if layer.causal else halo)
    assert first > 0
    assert last < x.shape[1] - 1
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        gradient = torch.autograd.grad(apply(leaf)[:, middle].square().sum(), leaf)[0]
    seen = gradient.flatten(2).abs().sum((0, 2)).nonzero().flatten()
    assert (seen.min().item(), seen.max().item()) == (first, last)
    hidden = torch.full_like(x, torch.nan)
    hidden[:, first : last + 1] = x[:, first : last + 1]
    assert_close(apply(hidden)[:, middle], apply(x)[:, middle], **EXACT)
