"""Make the package's network that segments (`flasepformer.conversation.segmentation`) of published weights.

Usage: python -m flasepformer.training.segmentation PUBLISHED.pt OUT.safetensors

PUBLISHED holds the weights of https://huggingface.co/pyannote/segmentation-3.0 (MIT licence) as `torch.load`
reads them without running code: its `state_dict`, or a dictionary that has one.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from flasepformer.conversation.segmentation import SAMPLE_RATE, SegmentationNetwork

LOWEST_HZ, NARROWEST_HZ = 50.0, 50.0


def filters_of(low: Tensor, band: Tensor, angles: Tensor, window: Tensor) -> Tensor:
    """Return band-pass filters (2 * filter, 1, time): all even ones, then all odd ones.

    SincNet (Ravanelli and Bengio, 2018) learns the edges of each band; the odd ones are the filters' Hilbert
    transforms.

    Args:
        low: (filter, 1), learnt, of the lower edges in Hz.
        band: (filter, 1), learnt, of the widths in Hz.
        angles: (1, half), negative: radians of the first half of the filter at 1 Hz.
        window: (half,), of that half.
    """
    lower = LOWEST_HZ + low.abs()
    upper = (lower + NARROWEST_HZ + band.abs()).clamp(NARROWEST_HZ, SAMPLE_RATE / 2)
    width = upper - lower
    half = window / (angles / 2)
    even = (torch.sin(upper @ angles) - torch.sin(lower @ angles)) * half / (2 * width)
    odd = (torch.cos(lower @ angles) - torch.cos(upper @ angles)) * half / (2 * width)
    middle = torch.ones_like(width)
    return torch.cat(
        [torch.cat([even, middle, even.flip(1)], 1), torch.cat([odd, 0 * middle, -odd.flip(1)], 1)]
    )[:, None]


def from_published(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of `SegmentationNetwork`: those of pyannote's PyanNet, with its filters.

    Raises:
        KeyError: They are of another network.
    """
    bank = "sincnet.conv1d.0.filterbank."
    names = {"sincnet.wav_norm1d": "enter", "classifier": "leave"}
    names |= {f"sincnet.conv1d.{k + 1}": f"convolutions.{k}" for k in range(2)}
    names |= {f"sincnet.norm1d.{k}": f"norms.{k}" for k in range(3)}
    names |= {f"linear.{k}": f"linears.{k}" for k in range(2)}
    found = {
        f"{ours}.{part}": published[f"{theirs}.{part}"]
        for theirs, ours in names.items()
        for part in ("weight", "bias")
    }
    found["filters.weight"] = filters_of(
        *(published[bank + part] for part in ("low_hz_", "band_hz_", "n_", "window_"))
    )
    for name in SegmentationNetwork().state_dict():
        if name.startswith("recurrent."):
            found[name] = published["lstm." + name.removeprefix("recurrent.")]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert and store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("published", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args(arguments)
    published = torch.load(options.published, map_location="cpu", weights_only=True)
    weights = from_published(published.get("state_dict", published))
    save_file({name: value.half().contiguous() for name, value in weights.items()}, options.out)


if __name__ == "__main__":
    main()
