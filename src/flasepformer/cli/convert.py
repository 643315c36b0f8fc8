"""`flasepformer convert`: a checkpoint from one layout to another."""

from pathlib import Path
from typing import Annotated

import typer

from flasepformer.cli.console import print_message, print_result
from flasepformer.cli.published import AcceptLicence, obtain_published


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Checkpoint: its folder or weights file.")],
    folder: Annotated[Path, typer.Argument(metavar="DST", help="New folder for the converted one.")],
    layout: Annotated[
        str,
        typer.Option(
            "--to", help='Layout to write: "flasepformer" (ours) or "modelscope" (the public release\'s).'
        ),
    ] = "flasepformer",
    half: Annotated[
        bool, typer.Option("--half", help="Store the weights in half precision, in our layout.")
    ] = False,
    eight_bits: Annotated[
        bool, typer.Option("--eight-bits", help="Store them in a quarter of the space, in our layout.")
    ] = False,
    causal: Annotated[
        int | None,
        typer.Option(
            min=1, help="Make an FLA-SepReformer causal with so many stages, to train it on for live use."
        ),
    ] = None,
    look_ahead: Annotated[
        int, typer.Option(min=0, help="Frames that it then waits for, to hear them; with --causal.")
    ] = 0,
    accept_licence: AcceptLicence = False,
) -> None:
    """Write a published checkpoint in our format, or ours in the layout of FLASepformer's public release.

    Exit codes: 0 done, 2 wrong usage, 3 the checkpoint is refused or the folder cannot be written.
    """
    import torch  # here, so that --help is instant

    from flasepformer.models import CheckpointError, convert_checkpoint
    from flasepformer.models.checkpoints import WRITABLE_LAYOUTS

    if layout not in WRITABLE_LAYOUTS:
        raise typer.BadParameter(f"--to takes one of {', '.join(WRITABLE_LAYOUTS)}, got {layout!r}")
    if half and eight_bits:
        raise typer.BadParameter("choose --half or --eight-bits")
    if (half or eight_bits) and layout != "flasepformer":
        raise typer.BadParameter("--half and --eight-bits are for our own layout; leave out --to")
    if causal is not None and (half or eight_bits or layout != "flasepformer"):
        raise typer.BadParameter(
            "--causal writes our own layout in full precision; leave out --to, --half and --eight-bits"
        )
    if look_ahead and causal is None:
        raise typer.BadParameter("--look-ahead is for causal networks; give --causal")
    try:
        obtain_published(source, accept_licence=accept_licence)
        if causal is not None:
            write_causal(source, folder, causal, look_ahead)
            print_result(f"{folder}: causal, {causal} stages, untrained")
            return
        dtype = torch.int8 if eight_bits else torch.float16 if half else torch.float32
        info = convert_checkpoint(source, folder, layout, dtype=dtype)
    except FileExistsError as error:
        raise typer.BadParameter(str(error)) from error
    except CheckpointError as error:
        print_message(f"error: {error}")
        raise typer.Exit(3) from error
    except OSError as error:
        print_message(f"error: {error.filename or folder}: {error.strerror or error}")
        raise typer.Exit(3) from error
    print_result(
        f"{folder}: {info.family}, {info.n_sources} talkers at {info.sample_rate} Hz, "
        f"{info.n_parameters:,} parameters"
    )


def write_causal(source: str, folder: Path, n_stages: int, look_ahead: int) -> None:
    """Write a model made causal, the start of a training such as `recipes/live.yaml`.

    Raises:
        FileExistsError: There is something in the folder.
        CheckpointError: The model cannot be loaded, or cannot be made causal.
    """
    from flasepformer.inference.levels import MODEL_RMS
    from flasepformer.models import CheckpointError, SepReformer, load_model, save_model
    from flasepformer.models.causal import made_causal

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already; name a new folder")
    network = load_model(source)
    if not isinstance(network, SepReformer):
        raise CheckpointError(f"{source} is no SepReformer; only those can be made causal")
    try:
        causal = made_causal(network, n_stages=n_stages, look_ahead=look_ahead, level=MODEL_RMS)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from error
    save_model(causal, folder, {"description": f"{source}, made causal, untrained"})
