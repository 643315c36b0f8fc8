"""Begin a causal network from the weights of one that hears the future."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from flasepformer.layers import DepthwiseConv
from flasepformer.models.sepreformer import ConvLocalAttention, SepReformer


@torch.no_grad()
def made_causal(
    network: SepReformer, *, n_stages: int | None = None, look_ahead: int = 0, level: float = 1.0
) -> SepReformer:
    """Return a causal network that keeps what fits of the weights of another, to go on training from.

    Kernels keep the frames that they look back at and lay those that they looked ahead at over the last one,
    so that what does not change is filtered as before. Fewer stages, for less delay, leave out the coarsest
    resolutions: the lowest stage that is kept gives its blocks to the bottleneck. With a look-ahead, the last
    local block keeps that much of what it looked ahead at.

    Args:
        network: With linear attention.
        n_stages: Of the new network; as many as before by default.
        look_ahead: Frames of the encoder, see `SepReformerConfig`.
        level: RMS of the mixtures that the new network will get, if this one normalises their variance.

    Raises:
        ValueError: If the network has softmax attention, fewer stages than asked for, or looks ahead less.
    """
    config = network.config
    n_stages = config.n_stages if n_stages is None else n_stages
    if not 1 <= n_stages <= config.n_stages:
        raise ValueError(
            f"n_stages must be from 1 to {config.n_stages}, as many as there are, got {n_stages}"
        )
    causal = SepReformer(
        replace(
            config,
            n_stages=n_stages,
            causal=True,
            look_ahead=look_ahead,
            normalize_variance=False,
            auxiliary_heads=False,
        )
    )
    for name in ("encoder", "feature_norm", "feature_projection", "source_split", "output", "decoder"):
        _copy(network.get_submodule(name), causal.get_submodule(name))
    n_left_out = config.n_stages - n_stages
    for index, stage in enumerate(causal.encoder_stages):
        _copy(network.encoder_stages[index], stage)
    lowest = network.encoder_stages[n_stages].get_submodule("blocks") if n_left_out else network.bottleneck
    _copy(lowest, causal.bottleneck)
    for index, upper in enumerate(causal.decoder_stages):
        _copy(network.decoder_stages[n_left_out + index], upper)
    if config.normalize_variance:
        causal.encoder.weight.div_(level)
        causal.decoder.weight.mul_(level)
    return causal.train(network.training)


def _copy(source: nn.Module, target: nn.Module) -> None:
    """Copy all weights, those of kernels as far as they look back."""
    weights = source.state_dict()
    ahead = {
        layer.convolution: layer.look_ahead
        for layer in target.modules()
        if isinstance(layer, ConvLocalAttention)
    }
    for (name, module), other in zip(target.named_modules(), source.modules(), strict=True):
        if isinstance(module, DepthwiseConv):
            assert isinstance(other, DepthwiseConv)
            weights[f"{name}.weight" if name else "weight"] = _looking_back(
                other.weight, module.stride, ahead.get(module, 0)
            )
    target.load_state_dict(weights)


def _looking_back(kernel: Tensor, stride: int, look_ahead: int = 0) -> Tensor:
    """Move a kernel (channels, 1, frames) that is centred on its frame to the frames until then.

    With a stride, it reaches the last frame before the next output, `stride` - 1 frames after its own; with a
    look-ahead, so many frames after its own.
    """
    n_later = kernel.shape[-1] // 2 - (stride - 1) - look_ahead  # frames out of reach
    if not n_later:
        return kernel.clone()
    moved = torch.zeros_like(kernel)
    moved[..., n_later:] = kernel[..., : kernel.shape[-1] - n_later]
    moved[..., -1] += kernel[..., kernel.shape[-1] - n_later :].sum(-1)
    return moved
