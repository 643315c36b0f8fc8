"""Unpack the state of the campaign into a run, or pack the run's into the folder that is committed.

Usage: python recipes/campaign.py {unpack,pack} [--run runs/campaign] [--state docs/campaign]
           [--recipe recipes/campaign.yaml]

`make campaign` unpacks where there is no run yet, and trains; `make campaign-pack` packs. A run that is under
way can be packed: what counts is its last checkpoint.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from flasepformer.training import TrainingError, load_recipe, pack_run, unpack_run
from flasepformer.training.run_folder import RunFolder

LARGEST_BYTES = 12_000_000


def main(arguments: Sequence[str] | None = None) -> None:
    """Unpack or pack; end the program with a message if that cannot be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", choices=("unpack", "pack"))
    parser.add_argument("--run", type=Path, default=Path("runs/campaign"), help="folder of the run")
    parser.add_argument(
        "--state", type=Path, default=Path("docs/campaign"), help="folder of the packed state"
    )
    parser.add_argument("--recipe", type=Path, default=Path("recipes/campaign.yaml"))
    options = parser.parse_args(arguments)
    try:
        if options.action == "pack":
            step = pack_run(options.run, options.state)
            n_bytes = sum(path.stat().st_size for path in options.state.iterdir())
            print(f"packed step {step} into {options.state}, {n_bytes / 1e6:.1f} MB")
            if n_bytes > LARGEST_BYTES:
                sys.exit(f"error: more than {LARGEST_BYTES / 1e6:g} MB; do not commit it")
        elif options.run.exists() and RunFolder(options.run).checkpoint is not None:
            print(f"{options.run} goes on with its own checkpoint")
        else:
            step = unpack_run(options.state, options.run, load_recipe(options.recipe))
            print(f"{options.run} goes on from step {step} of {options.state}")
    except (TrainingError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
