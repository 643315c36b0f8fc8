"""Make the weights that recipes/live.yaml begins with: a trained model, made causal.

Usage: python recipes/live.py [MODEL] [--out runs/live-start]

Two stages instead of the default model's three: steps of 64 ms and a delay of 80 ms.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from flasepformer.inference.levels import MODEL_RMS
from flasepformer.models import SepReformer, load_model, save_model
from flasepformer.models.causal import made_causal


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the checkpoint."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "model", nargs="?", default="default", help="name or checkpoint of an FLA-SepReformer"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/live-start"))
    parser.add_argument("--stages", type=int, default=2, help="of the causal network")
    options = parser.parse_args(arguments)
    network = load_model(options.model)
    if not isinstance(network, SepReformer):
        raise SystemExit(f"error: {options.model} is no SepReformer")
    causal = made_causal(network, n_stages=options.stages, level=MODEL_RMS)
    save_model(causal, options.out, {"description": f"{options.model}, made causal, untrained"})
    print(options.out)


if __name__ == "__main__":
    main()
