"""Other public models, built with random weights from their own packages, for comparison.

None of them is a requirement of this package; docs/benchmarks.md says how to install each, and its licence.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from flasepformer.benchmark.cases import Case, cases_for
from flasepformer.errors import FlasepformerError

SAMPLE_RATE = 8000
"""Hz; all peers are published at this rate."""


class PeerError(FlasepformerError, ValueError):
    """A peer that is unknown or not installed; the message says what to do."""


class Peer(nn.Module):
    """A network of another package, from mixture (batch, time) to whatever it returns."""

    def __init__(self, network: nn.Module, countable: bool = True) -> None:
        super().__init__()
        self.network = network
        self.sample_rate = SAMPLE_RATE
        self.countable = countable  # False where its code looks at numbers, so that shapes alone do not pass

    def forward(self, mixture: Tensor) -> Any:
        return self.network(mixture)


def fla_sepreformer_release(n_channels: int) -> Peer:
    """FLA-SepReformer as its authors released it."""
    from modelscope.models.audio.separation.tsepreformer.tsepreformer import TSepReformer

    attention = {
        "linear_attn_type": "FocusedLinearAttention",
        "gated": True,
        "kernel_size": 5,
        "focusing_factor": 3,
    }
    heads = {"in_channels": n_channels, "num_mha_heads": 8, "dropout_rate": 0.05}
    local = {"in_channels": n_channels, "kernel_size": 65, "dropout_rate": 0.05}
    stage = {
        "global_blocks": heads,
        "local_blocks": local,
        "addition_conf": {"ega_addition_conf": {**attention, "norm_type": "layernorm"}},
    }
    separator = {
        "num_stages": 4,
        "relative_positional_encoding": {
            "in_channels": n_channels, "num_heads": 8, "maxlen": 2000, "embed_v": False
        },
        "enc_stage": {**stage, "down_conv_layer": {"in_channels": n_channels, "samp_kernel_size": 5}},
        "spk_split_stage": {"in_channels": n_channels, "num_spks": 2},
        "simple_fusion": {"out_channels": n_channels},
        "dec_stage": {**stage, "num_spks": 2, "spk_attention": heads},
    }  # fmt: skip
    window = {"kernel_size": 16, "stride": 4, "bias": False}
    conf = {
        "num_stages": 4,
        "num_spks": 2,
        "module_audio_enc": {**window, "in_channels": 1, "out_channels": 256, "groups": 1},
        "module_feature_projector": {
            "num_channels": 256, "in_channels": 256, "out_channels": n_channels, "kernel_size": 1,
            "bias": False
        },
        "module_separator": separator,
        "module_output_layer": {"in_channels": 256, "out_channels": n_channels, "num_spks": 2},
        "module_audio_dec": {**window, "in_channels": 256, "out_channels": 1},
    }  # fmt: skip
    return Peer(TSepReformer("", conf))


def fla_tflocoformer_release(n_blocks: int, n_channels: int, hidden_width: int) -> Peer:
    """FLA-TFLocoformer as its authors released it."""
    from modelscope.models.audio.separation.flatflocoformer.flatflocoformer import FLATFLocoformer

    attention = {
        "linear_attn_type": "FocusedLinearAttention",
        "gated": True,
        "kernel_size": 5,
        "focusing_factor": 3,
    }
    conf = {
        "num_spk": 2, "n_layers": 2 * n_blocks, "emb_dim": n_channels, "num_groups": 4, "n_heads": 4,
        "attention_dim": n_channels, "ffn_type": ["swiglu_conv1d_layerchange"] * 2,
        "ffn_hidden_dim": [hidden_width] * 2, "conv1d_kernel": 8, "conv1d_shift": 1, "dropout": 0.0,
        "layers_type": ["f", "t"] * n_blocks, "attn_types": ["LocoformerMHSA", "LocoformerLinearAttnMHSA"],
        "attn_addition_conf": {"ega_addition_conf": {**attention, "norm_type": "RMSGroupNorm_4"}},
    }  # fmt: skip
    return Peer(FLATFLocoformer("", conf), countable=False)


def mossformer2() -> Peer:
    """MossFormer2 with the configuration of its 8 kHz release, which is its default."""
    from modelscope.models.audio.separation.m2.mossformer import MossFormer2

    return Peer(MossFormer2(""))


def speechbrain_sepformer() -> Peer:
    """SepFormer with the configuration of its WSJ0-2Mix release, which is its default."""
    from speechbrain.lobes.models.dual_path import SepformerWrapper

    return Peer(SepformerWrapper())


def asteroid_convtasnet() -> Peer:
    """Conv-TasNet with Asteroid's default configuration."""
    from asteroid.models import ConvTasNet

    return Peer(ConvTasNet(n_src=2), countable=False)


def asteroid_dprnn() -> Peer:
    """DPRNN with Asteroid's default configuration."""
    from asteroid.models import DPRNNTasNet

    return Peer(DPRNNTasNet(n_src=2), countable=False)


@dataclass(frozen=True)
class PeerEntry:
    """A peer by name."""

    packages: tuple[str, ...]
    """Modules that it needs."""
    build: Callable[[], Peer]


MODELSCOPE = ("modelscope", "einops", "rotary_embedding_torch", "addict")

PEERS = {
    "release-fla-sepreformer-t": PeerEntry(MODELSCOPE, lambda: fla_sepreformer_release(64)),
    "release-fla-sepreformer-b": PeerEntry(MODELSCOPE, lambda: fla_sepreformer_release(128)),
    "release-fla-sepreformer-l": PeerEntry(MODELSCOPE, lambda: fla_sepreformer_release(256)),
    "release-fla-tflocoformer-s": PeerEntry(MODELSCOPE, lambda: fla_tflocoformer_release(4, 96, 128)),
    "release-fla-tflocoformer-m": PeerEntry(MODELSCOPE, lambda: fla_tflocoformer_release(6, 128, 192)),
    "mossformer2": PeerEntry(MODELSCOPE, mossformer2),
    "speechbrain-sepformer": PeerEntry(("speechbrain", "torchaudio"), speechbrain_sepformer),
    "asteroid-convtasnet": PeerEntry(("asteroid", "asteroid_filterbanks", "julius"), asteroid_convtasnet),
    "asteroid-dprnn": PeerEntry(("asteroid", "asteroid_filterbanks", "julius"), asteroid_dprnn),
}
"""Every peer that can be measured."""

GROUPS = {
    "flasepformer-release": [name for name in PEERS if name.startswith("release-")],
    "all": list(PEERS),
}
"""Names that stand for several peers."""


def build_peer(name: str) -> Peer:
    """Build a peer of `PEERS` with random weights."""
    return PEERS[name].build()


def peer_cases(
    names: Iterable[str], lengths: Iterable[float], *, device: str, precision: str, threads: int
) -> list[Case]:
    """Return a case for every peer and length.

    Args:
        names: Of `PEERS` or `GROUPS`.
        lengths: In seconds.
        device: As in `Case`.
        precision: As in `Case`.
        threads: As in `Case`.

    Raises:
        PeerError: If a peer is unknown, or its packages are not installed.
    """
    chosen = [peer for name in names for peer in GROUPS.get(name, [name])]
    for name in chosen:
        if name not in PEERS:
            raise PeerError(f"no peer is called {name!r}; the peers are {', '.join([*PEERS, *GROUPS])}")
        missing = [package for package in PEERS[name].packages if find_spec(package) is None]
        if missing:
            how = 'pip install "flasepformer[peers]"; asteroid has its own way, see docs/benchmarks.md'
            raise PeerError(f"{name} needs {', '.join(missing)}: {how}")
    builder = f"{__name__}:build_peer"
    return cases_for(chosen, lengths, builder=builder, device=device, precision=precision, threads=threads)
