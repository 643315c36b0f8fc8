"""Begin a larger network from trained weights, so that it need not learn again what a smaller one knows."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flasepformer.layers import FocusedLinearAttention
from flasepformer.models.sepreformer import (
    ConvLocalAttention,
    EncoderStage,
    GatedConvFeedForward,
    LayerScale,
    SepReformer,
    TalkerAttention,
)

OFFSET = 6.0
"""Added to features on their way through GELU, which hardly changes what is well above zero."""

LEAST_SCALE = 0.3
"""Of the branch that takes the offset away again, so that its bias stays moderate."""


@torch.no_grad()
def refined(network: SepReformer, mixtures: Tensor) -> SepReformer:
    """Return a network with half the hop and one more stage, which begins as what the other has learned.

    The windows stay as long; there are twice as many. The new outermost stage passes on every second of
    its frames to the stages that were there, and gives what comes back to the next frame too; its blocks
    begin as the identity. What differs at first: the edges, and that every second window is given the masks
    of the one before.

    Args:
        network: With linear attention, masks, and an even hop; not causal.
        mixtures: (batch, time) to take the statistics of batch normalisation from.

    Raises:
        ValueError: If the network cannot be refined.
    """
    config = network.config
    if config.attention == "softmax" or not config.masking or config.causal or config.hop_length % 2:
        raise ValueError("only a network with linear attention, masks and an even hop can be refined")
    fine = SepReformer(replace(config, hop_length=config.hop_length // 2, n_stages=config.n_stages + 1))
    fine.eval()
    names = [
        "encoder",
        "feature_norm",
        "feature_projection",
        "bottleneck",
        "source_split",
        "output",
        "decoder",
    ]
    kept = [(network.get_submodule(name), fine.get_submodule(name)) for name in names]
    kept += zip(network.encoder_stages, fine.encoder_stages[1:], strict=True)
    kept += zip(network.decoder_stages, fine.decoder_stages[:-1], strict=True)
    kept += zip(network.auxiliary_outputs, fine.auxiliary_outputs[1:], strict=False)
    kept += zip(network.auxiliary_decoders, fine.auxiliary_decoders[1:], strict=False)
    for old, new in kept:
        new.load_state_dict(old.state_dict())
    for decoder in (fine.decoder, *fine.auxiliary_decoders):
        decoder.get_parameter("weight").div_(2)  # twice as many windows overlap
    finest, second, *_ = fine.encoder_stages
    *_, lowest = fine.decoder_stages
    for block in (*finest.blocks, *lowest.blocks):
        _pass_through(block)
    lowest.fusion.weight.copy_(torch.eye(*lowest.fusion.weight.shape))
    lowest.fusion.bias.zero_()
    frames, _ = fine.open(mixtures)
    _pass_on(finest, fine.feature_projection(fine.feature_norm(frames)))
    _take_offset(second)
    return fine.train(network.training)


def _pass_through(block: nn.Module) -> None:
    """Let the branches of a block add nothing; the first gradients reach their last projections."""
    for layer in block.modules():
        if isinstance(layer, (GatedConvFeedForward, ConvLocalAttention)):
            last = layer.contract
        elif isinstance(layer, (TalkerAttention, FocusedLinearAttention)):
            last = layer.output
        else:
            continue
        last.weight.zero_()
        last.bias.zero_()


def _pass_on(stage: EncoderStage, x: Tensor) -> None:
    """Let a stage give on every second frame, with an offset that brings it through GELU."""
    kernel, norm = stage.downsample.weight, stage.downsample_norm
    kernel.copy_(F.one_hot(torch.tensor(kernel.shape[-1] // 2), kernel.shape[-1]))
    stage.downsample.bias.zero_()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(x.mean((0, 1)))
    norm.running_var.copy_(x.var((0, 1)))
    norm.weight.copy_((norm.running_var + norm.eps).sqrt())
    norm.bias.copy_(norm.running_mean + OFFSET)


def _take_offset(stage: EncoderStage) -> None:
    """Let the last branch of a stage take the offset off again, which the norms before it do not see."""
    layers = [layer for layer in stage.blocks.modules() if isinstance(layer, GatedConvFeedForward)]
    scale, last = layers[-1].scale, layers[-1].contract
    larger = _at_least(scale, LEAST_SCALE)
    ratio = scale.scale / larger
    last.weight.mul_(ratio.unsqueeze(-1))
    last.bias.mul_(ratio).sub_(OFFSET / larger)
    scale.scale.copy_(larger)


def _at_least(scale: LayerScale, least: float) -> Tensor:
    signs = torch.where(scale.scale < 0, -1.0, 1.0)
    return signs * scale.scale.abs().clamp_min(least)
