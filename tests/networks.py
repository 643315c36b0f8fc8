"""A real network, far too small to separate anything."""

import torch

from flasepformer.models import SepReformer, SepReformerConfig

TINY = {"n_filters": 16, "n_channels": 8, "n_heads": 2, "n_stages": 2, "local_kernel_size": 5,
        "n_encoder_blocks": 1, "n_decoder_blocks": 1}  # fmt: skip


def tiny(seed: int = 0, **changes: object) -> SepReformer:
    """Return one for two talkers at 8 kHz, of two stages; what it has learnt is the seed's."""
    torch.manual_seed(seed)
    return SepReformer(SepReformerConfig(**{**TINY, **changes}))
