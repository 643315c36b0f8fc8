"""Put the best weights of a training run into the package as its default model.

Usage: python recipes/publish.py RUN_FOLDER
"""

import json
import sys
from pathlib import Path

import torch

from flasepformer.models import load_model, multiply_adds, save_model

DEFAULT = Path(__file__).parents[1] / "src" / "flasepformer" / "pretrained" / "default"


def main(run: Path) -> None:
    """Store the weights in half precision, with what the run knows of them."""
    model = load_model(run / "best")
    info = json.loads((run / "best" / "config.json").read_text(encoding="utf-8"))["info"]
    info["giga_multiply_adds"] = round(multiply_adds(model, seconds=10) / 10 / 1e9, 2)
    save_model(model, DEFAULT, info, dtype=torch.float16)
    for path in sorted(DEFAULT.iterdir()):
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
