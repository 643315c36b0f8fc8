"""`flasepformer serve`: the page on this computer, in a browser."""

from typing import Annotated

import typer

from flasepformer.cli.console import print_message, print_result


def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on; by default this computer alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any that is free.")] = 8000,
    name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Host name under which the page may be asked for, too; may be repeated."
        ),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Serve a page that separates recordings in the browser itself: no audio leaves the computer.

    Exit codes: 3 the page is missing or the address cannot be had, 130 interrupted.
    """
    from flasepformer.web import (
        PageError,
        PageServer,
        is_local,
        page_files,
    )  # here, so that --help is instant

    try:
        server = PageServer(page_files(), host, port, names=tuple(name or ()))
    except PageError as error:
        print_message(f"error: {error}")
        raise typer.Exit(3) from error
    except OSError as error:
        print_message(f"error: cannot listen on {host} port {port}: {error.strerror or error}; see --port")
        raise typer.Exit(3) from error
    if not is_local(host):
        print_message(
            f"warning: others who reach {host} can open this page; their audio stays with them, but browsers "
            "allow recording and threads over https or on this computer only"
        )
    with server:
        print_result(server.url)
        if open_browser:
            import webbrowser

            webbrowser.open(server.url)
        server.serve_forever()
