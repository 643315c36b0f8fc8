"""Every layer of both families keeps to the contract that all performers rely on."""

import pytest
import torch
from tests.models.conftest import tiny_config
from tests.models.test_tflocoformer import tiny_config as tiny_tf_config
from tests.verify import verify_layer

from flasepformer.layers import DepthwiseConv, GlobalNorm, RelativePositions
from flasepformer.models import sepreformer, tflocoformer


def sepreformer_layers(causal):
    config = tiny_config(causal=causal, layer_scale=0.5)
    return {
        "projection": sepreformer.Projection(8, 12),
        "GELU": sepreformer.Gelu(),
        "batch normalisation": sepreformer.FrameBatchNorm(8),
        "convolution": DepthwiseConv(8, 5, causal=causal),
        "convolution with shared kernels": DepthwiseConv(4, 3, causal=causal, n_repeats=2),
        "half the rate": DepthwiseConv(8, 5, stride=2, causal=causal),
        "global normalisation": GlobalNorm(8, causal=causal),
        "linear attention": sepreformer.linear_attention(config),
        "linear attention without gate and convolution": sepreformer.linear_attention(
            tiny_config(causal=causal, gated=False, value_kernel_size=0)
        ),
        "plain linear attention": sepreformer.linear_attention(
            tiny_config(causal=causal, attention="linear")
        ),
        "many channels": sepreformer.linear_attention(tiny_config(causal=causal, n_channels=136)),
        "feed-forward": sepreformer.GatedConvFeedForward(config),
        "local attention": sepreformer.ConvLocalAttention(config),
        "talkers": sepreformer.TalkerAttention(config),
        "three talkers": sepreformer.TalkerAttention(tiny_config(n_sources=3, layer_scale=0.5)),
        "split": sepreformer.SourceSplit(config),
        "output": sepreformer.OutputLayer(config),
        "synthesis": sepreformer.Synthesis(
            sepreformer.OutputLayer(config).double(), sepreformer.waveform_decoder(config).double()
        ),
    }


def tflocoformer_layers(causal):
    config = tiny_tf_config(causal=causal, normalize_variance=False)
    fast = tiny_tf_config(causal=causal, normalize_variance=False, feed_forward_kernel=8)
    return {
        "input": tflocoformer.BinConv(8, 6, causal),
        "output": tflocoformer.BinConv(8, 4, causal, transposed=True),
        "feed-forward along bins": tflocoformer.ConvSwiGLU(config, "bins"),
        "feed-forward along frames": tflocoformer.ConvSwiGLU(config, "frames"),
        "fast feed-forward along bins": tflocoformer.ConvSwiGLU(fast, "bins"),
        "fast feed-forward along frames": tflocoformer.ConvSwiGLU(fast, "frames"),
        "windows": tflocoformer.Windows(32, causal),
        "attention along bins": tflocoformer.BinAttention(config),
        "linear attention": tflocoformer.time_attention(config),
        "global normalisation": GlobalNorm(8, causal=causal),
    }


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", sepreformer_layers(False))
def test_layers_of_sepreformer(name, causal):
    torch.manual_seed(0)
    layer = sepreformer_layers(causal)[name]
    n_channels = 136 if name == "many channels" else 8
    verify_layer(layer, torch.randn(6, 40, n_channels), unit={"talkers": 2, "three talkers": 3}.get(name, 1))


@pytest.mark.parametrize("gated", [True, False])
def test_softmax_attention_of_sepreformer(gated):
    torch.manual_seed(0)
    config = tiny_config(attention="softmax", layer_scale=0.5, gated=gated)
    layer = sepreformer.PooledResidualAttention(config, 1, RelativePositions(6, 4).double())
    verify_layer(layer, torch.randn(2, 24, 8))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", tflocoformer_layers(False))
def test_layers_of_tflocoformer(name, causal):
    torch.manual_seed(0)
    layer = tflocoformer_layers(causal)[name]
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    verify_layer(layer, torch.randn(2, 40, 17, 8))


def test_softmax_attention_over_frames_of_tflocoformer():
    torch.manual_seed(0)
    verify_layer(tflocoformer.FrameAttention(tiny_tf_config(attention="softmax")), torch.randn(2, 24, 17, 8))


@pytest.mark.parametrize("first", [0, 1, 4])
def test_features_from_below_are_repeated_and_joined_with_the_skip(first):
    torch.manual_seed(0)
    fusion = sepreformer.Fusion(16, 8)
    below, skip = torch.randn(2, 6, 8), torch.randn(2, 12, 8)
    expected = torch.nn.functional.linear(
        torch.cat([below.repeat_interleave(2, 1), skip], -1), fusion.weight, fusion.bias
    )
    joined = fusion.join(below[:, first // 2 :], skip[:, first:], first)
    torch.testing.assert_close(joined, expected[:, first:])
