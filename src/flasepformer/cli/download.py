"""`flasepformer download`: published weights onto this computer, or into a folder for another one."""

from pathlib import Path
from typing import Annotated

import typer

from flasepformer.cli.console import print_message, print_result
from flasepformer.cli.published import AcceptLicence, obtain_model


def download(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME...", help="Published models; see `flasepformer models`."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every published model.")] = False,
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Copy each to FOLDER/NAME, for a computer without network: there, --model FOLDER/NAME.",
        ),
    ] = None,
    accept_licence: AcceptLicence = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing but errors and warnings.")] = False,
) -> None:
    """Fetch published models, check them and keep them in our format; from then on they work offline.

    An interrupted download goes on with the same command. Where the models lie is printed. FLASEPFORMER_HOME
    says where they are kept, FLASEPFORMER_GITHUB_ENDPOINT and MODELSCOPE_ENDPOINT where they come from,
    FLASEPFORMER_MODELS names a list of models of your own. Exit codes: 0 all here, 2 wrong usage, 3 a model
    cannot be had or its licence is not accepted, 130 interrupted.
    """
    from flasepformer.models import CheckpointError, published_models
    from flasepformer.models.published import export

    if bool(names) == everything:
        raise typer.BadParameter("give the names of models, or --all")
    failed = False
    try:
        catalogue = published_models()
        for name in names or catalogue.models:
            try:
                model = catalogue.find(name)
                if model is None:
                    known = ", ".join((*catalogue.models, *catalogue.aliases))
                    raise typer.BadParameter(f"no published model is called {name!r}; there are {known}")
                folder = obtain_model(model, accept_licence=accept_licence, quiet=quiet)
                print_result(str(folder if to is None else export(folder, to / model.name)))
            except CheckpointError as error:
                print_message(f"error: {error}")
                failed = True
    except CheckpointError as error:
        print_message(f"error: {error}")
        failed = True
    except KeyboardInterrupt:
        print_message("interrupted; the same command goes on from here")
        raise typer.Exit(130) from None
    raise typer.Exit(3 if failed else 0)
