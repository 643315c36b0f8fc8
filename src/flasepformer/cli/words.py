"""How a command line is understood: the command left out, and names of options that have changed."""

import os
from collections.abc import Mapping
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from flasepformer.cli.console import print_message

OLD_NAMES: Mapping[str, Mapping[str, str]] = {
    "separate": {"--chunk": "--chunk-seconds", "--overlap": "--overlap-seconds"},
    "mixtures": {"--workers": "--jobs", "--overlap": "--overlap-share"},
}
"""Options that have another name now, of each command. The old ones keep working, and say so."""

_OWN_OPTIONS = ("--help", "-h", "--version", "-V", "--install-completion", "--show-completion")


class Commands(TyperGroup):
    """The commands; recordings without a command are to be separated."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `separate` before arguments that begin with a recording, or with an option of that command."""
        if (
            args
            and args[0] not in self.commands
            and not args[0].startswith(_OWN_OPTIONS)
            and _is_input(args[0])
        ):
            args = ["separate", *args]
        return super().parse_args(ctx, args)


class Command(TyperCommand):
    """A command whose options are found under their old names, too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Replace old names before anything else is read."""
        return super().parse_args(ctx, renamed(args, OLD_NAMES.get(ctx.info_name or "", {})))


def renamed(args: list[str], new_names: Mapping[str, str]) -> list[str]:
    """Return arguments with old names of options replaced, and say so.

    >>> renamed(["--chunk=8", "a.wav", "--", "--chunk"], {"--chunk": "--chunk-seconds"})
    ['--chunk-seconds=8', 'a.wav', '--', '--chunk']
    """
    end = args.index("--") if "--" in args else len(args)
    result = []
    for arg in args[:end]:
        name, equals, value = arg.partition("=")
        if name in new_names:
            print_message(f"note: {name} is called {new_names[name]} now; the old name still works")
        result.append(f"{new_names.get(name, name)}{equals}{value}")
    return result + args[end:]


def _is_input(arg: str) -> bool:
    """Tell a recording, a folder or an option from the name of a command that there is not."""
    return arg.startswith("-") or os.path.lexists(arg) or os.sep in arg or "." in arg


def checked_device(name: str) -> str:
    """Return a name that `--device` takes: auto, cpu, cuda, mps, or one of several such as cuda:1."""
    kind, colon, index = name.partition(":")
    if name != "auto" and (kind not in ("cpu", "cuda", "mps") or (colon and not index.isdecimal())):
        raise typer.BadParameter(
            f"must be auto, cpu, cuda, cuda:N for the one of number N, or mps, got {name!r}"
        )
    return name
