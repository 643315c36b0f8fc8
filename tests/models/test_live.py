"""A causal network live: steps of any size give the whole, and nothing depends on what comes later."""

import io
from functools import partial

import pytest
import torch
from tests.models.conftest import tiny_config
from tests.models.test_tflocoformer import tiny_config as tiny_tf_config
from torch.utils._python_dispatch import TorchDispatchMode

from flasepformer.models import SepReformer, TFLocoformer, load_model

NETWORKS = {
    "FLA-SepReformer": lambda: SepReformer(tiny_config(causal=True, layer_scale=0.5)),
    "with masks, three talkers": lambda: SepReformer(
        tiny_config(causal=True, layer_scale=0.5, masking=True, n_sources=3, n_stages=3)
    ),
    "plain linear attention": lambda: SepReformer(
        tiny_config(causal=True, layer_scale=0.5, attention="linear", gated=False, value_kernel_size=0)
    ),
    "FLA-TFLocoformer": lambda: TFLocoformer(tiny_tf_config(causal=True, normalize_variance=False)),
    "looks ahead and forgets": lambda: SepReformer(
        tiny_config(causal=True, layer_scale=0.5, masking=True, look_ahead=2, forget_seconds=0.05)
    ),
    "looks ahead and forgets, FLA-TFLocoformer": lambda: TFLocoformer(
        tiny_tf_config(causal=True, normalize_variance=False, look_ahead=2, forget_seconds=0.2)
    ),
    "even kernel, odd hop": lambda: TFLocoformer(
        tiny_tf_config(causal=True, normalize_variance=False, feed_forward_kernel=8, hop_length=7)
    ),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    torch.manual_seed(0)
    network = NETWORKS[request.param]().eval()
    for name, buffer in network.named_buffers():  # statistics as after a training
        if name.endswith("running_mean"):
            buffer.uniform_(-0.2, 0.2)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return network


def step_length(network):
    return network.hop_length * network.frames_per_step


def assert_same(estimates, expected):
    assert estimates.shape == expected.shape
    assert (estimates - expected).square().mean() < (1e-5 * expected.square().mean().sqrt()) ** 2


def play(network, mixture, n_steps, state=None, layers=None):
    """Play a mixture live, so many steps at a time; return all estimates and the state."""
    state, played = state or {}, []
    with torch.no_grad():
        for block in mixture.split(n_steps * step_length(network), dim=1):
            estimates, state = network.step(block, state, layers)
            played.append(estimates)
    return torch.cat(played, dim=-1), state


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_steps_of_any_size_are_the_whole(network, n_steps, prepared):
    mixture = torch.randn(2, 15 * step_length(network))
    played, _ = play(network, mixture, n_steps, layers={} if prepared else None)
    whole = network(mixture).detach()
    assert_same(played[..., network.lag :], whole[..., : whole.shape[-1] - network.lag])


@pytest.mark.parametrize("n_samples", [1, 803])
def test_a_recording_in_pieces_is_the_whole(network, n_samples):
    mixture = torch.randn(2, n_samples)
    told = []
    estimates = network.separate_in_pieces(mixture, progress=told.append, piece_length=20)
    assert_same(estimates, network(mixture).detach())
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)


def test_what_was_said_stays_as_it_is_whatever_comes(network):
    mixture = torch.randn(1, 20 * step_length(network))
    heard = 12 * step_length(network)
    other = torch.cat([mixture[:, :heard], torch.randn(1, mixture.shape[1] - heard)], dim=1)
    with torch.no_grad():
        first, second = network(mixture), network(other)
    done = heard - network.lag
    assert_same(second[..., :done], first[..., :done])
    assert (second - first)[..., heard:].abs().max() > 0.1 * first.std()


def test_the_state_does_not_grow_and_goes_on_from_a_file(network):
    mixture = torch.randn(1, 16 * step_length(network))
    middle = 10 * step_length(network)
    early, state = play(network, mixture[:, :middle], 2)
    sizes = {name: value.shape for name, value in state.items()}
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    late, after = play(network, mixture[:, middle:], 2, torch.load(file, weights_only=True))
    assert {name: value.shape for name, value in after.items()} == sizes
    assert_same(torch.cat([early, late], -1), play(network, mixture, 2)[0])


def test_streams_that_began_apart_go_on_as_a_batch(network):
    mixtures = torch.randn(2, 9 * step_length(network))
    middle = 4 * step_length(network)
    alone = [play(network, mixture[None], 1) for mixture in mixtures[:, :middle]]
    together = {name: torch.cat([state[name] for _, state in alone]) for name in alone[0][1]}
    played, _ = play(network, mixtures[:, middle:], 1, together)
    assert_same(played, play(network, mixtures, 1)[0][..., middle:])


def test_a_step_learns_as_the_whole_does(network):
    network = network.double()
    mixture = torch.randn(1, 6 * step_length(network)).double()
    upstream = torch.randn(network.n_sources, mixture.shape[1] - network.lag).double()
    whole = network(mixture)[0, :, : upstream.shape[1]]
    state, played = {}, []
    for block in mixture.split(2 * step_length(network), dim=1):
        estimates, state = network.step(block, state)
        played.append(estimates)
    steps = torch.cat(played, -1)[0, :, network.lag :]
    names = [name for name, _ in network.named_parameters() if not name.startswith("auxiliary")]
    weights = [network.get_parameter(name) for name in names]
    gradients = [torch.autograd.grad(y, weights, upstream) for y in (whole, steps)]
    for expected, own in zip(*gradients, strict=True):
        assert (own - expected).norm() <= 1e-8 * (expected.norm() + 1e-6)


@pytest.mark.long
def test_the_step_can_be_exported_with_its_state(network):
    class Step(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, samples, state):
            return self.network.step(samples, state)

    first, second = torch.randn(2, 1, step_length(network))
    with torch.no_grad():
        _, state = network.step(first, {})
        program = torch.export.export(Step().eval(), (first, state), strict=False)
        exported, exported_state = program.module()(second, state)
        estimates, state = network.step(second, state)
    assert_same(exported, estimates)
    assert exported_state.keys() == state.keys()


class Computations(TorchDispatchMode):
    """Counts what is computed; another view of the same numbers is not."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        aliases = [result.alias_info for result in function._schema.returns]
        self.n += not any(alias is not None and not alias.is_write for alias in aliases)
        return function(*arguments, **(options or {}))


def test_a_step_of_the_live_model_is_few_computations():
    network, state, layers = load_model("default-live").eval(), {}, {}
    samples = torch.randn(2, 1, step_length(network))
    with torch.no_grad():
        _, state = network.step(samples[0], state, layers)
        with Computations() as whole:
            network.step(samples[1], state)
        with Computations() as step:
            network.step(samples[1], state, layers)
    assert step.n <= 600
    assert whole.n >= step.n + 200  # what the weights alone come to is computed once


def test_what_is_no_whole_step_is_refused(network):
    with pytest.raises(ValueError, match=f"a multiple of {step_length(network)} samples"):
        network.step(torch.randn(1, step_length(network) + 1), {})


def test_a_network_that_hears_the_future_cannot_be_played_live():
    with pytest.raises(ValueError, match="only a causal network can be played live"):
        SepReformer(tiny_config()).step(torch.randn(1, 64), {})


@pytest.mark.parametrize("family", [SepReformer, TFLocoformer])
def test_what_is_heard_of_the_future_comes_as_delay(family):
    def first_change(look_ahead):
        torch.manual_seed(1)
        make = partial(tiny_config, layer_scale=0.5) if family is SepReformer else tiny_tf_config
        network = family(make(causal=True, normalize_variance=False, look_ahead=look_ahead)).eval()
        mixture = torch.randn(1, 40 * step_length(network))
        changed = 20 * step_length(network)
        other = mixture.clone()
        other[:, changed:] += 1
        with torch.no_grad():
            difference = (network(other) - network(mixture)).abs().amax((0, 1))
        return changed - int((difference > 1e-6).nonzero()[0]), network.lag

    (seen, lag), (seen_ahead, lag_ahead) = first_change(0), first_change(2)
    assert lag < lag_ahead
    assert 0 < seen <= lag + 1
    assert seen < seen_ahead <= lag_ahead + 1


@pytest.mark.parametrize("make", [tiny_config, tiny_tf_config])
def test_what_is_long_ago_is_forgotten(make):
    def last_minute(forget_seconds, loud):
        torch.manual_seed(1)
        family = SepReformer if make is tiny_config else TFLocoformer
        network = family(make(causal=True, normalize_variance=False, forget_seconds=forget_seconds)).eval()
        mixture = torch.randn(1, 8000)
        mixture[:, :4000] *= loud
        with torch.no_grad():
            return network(mixture)[..., 6000:]

    def change(seconds):
        before, after = last_minute(seconds, 1.0), last_minute(seconds, 30.0)
        return float((after - before).norm() / before.norm())

    assert change(0.0) > 0.2
    assert change(0.02) < 0.05


@pytest.mark.parametrize("make", [tiny_config, tiny_tf_config])
@pytest.mark.parametrize("changes", [{"look_ahead": 1}, {"forget_seconds": 1.0}])
def test_only_causal_networks_look_ahead_or_forget(make, changes):
    with pytest.raises(ValueError, match="set causal to true"):
        make(**changes)
    with pytest.raises(ValueError, match="forget_seconds must be a time"):
        make(causal=True, normalize_variance=False, forget_seconds=-1.0)
