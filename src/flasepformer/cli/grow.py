"""`flasepformer grow`: a larger network that begins with what a smaller one has learned."""

from pathlib import Path
from typing import Annotated

import typer

from flasepformer.cli.console import print_message, print_result


def grow(
    model: Annotated[str, typer.Argument(help="Name or checkpoint of an FLA-SepReformer with masks.")],
    folder: Annotated[Path, typer.Argument(help="Where to put the larger one, to train on from.")],
    recording: Annotated[
        list[Path], typer.Option(exists=True, dir_okay=False, help="Of people who talk; repeatable.")
    ],
) -> None:
    """Halve the hop of a trained network, with one more stage; at first it separates as before.

    The recordings give the statistics of batch normalisation.

    Exit codes: 0 done, 2 wrong usage, 3 the model cannot be loaded or refined, or there is no room.
    """
    import torch  # here, so that --help is instant

    from flasepformer.audio import read_audio, resample
    from flasepformer.errors import FlasepformerError
    from flasepformer.models import CheckpointError, SepReformer, load_model, save_model
    from flasepformer.models.growing import refined

    try:
        network = load_model(model)
        if not isinstance(network, SepReformer):
            raise CheckpointError(f"{model} is no FLA-SepReformer")
        recordings = [read_audio(path) for path in recording]
        signals = [
            torch.from_numpy(resample(one.samples.mean(0), one.sample_rate, network.sample_rate))
            for one in recordings
        ]
        shortest = min(len(signal) for signal in signals)
        grown = refined(network, torch.stack([signal[:shortest] for signal in signals]))
        save_model(grown, folder, {"description": f"{Path(model).name} with half the hop, untrained"})
    except (FlasepformerError, ValueError, OSError) as error:
        print_message(f"error: {error}")
        raise typer.Exit(3) from error
    n_parameters = sum(parameter.numel() for parameter in grown.parameters())
    print_result(f"{folder}: hop {grown.config.hop_length}, {n_parameters:,} parameters")
