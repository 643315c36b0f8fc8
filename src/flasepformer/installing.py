"""How to install an extra, said the way in which this package was really installed."""

import json
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from urllib.parse import urlparse
from urllib.request import url2pathname


@cache
def how_to_install(extra: str) -> str:
    """Return the command that adds an extra: to a clone, an archive, a repository or the package by name."""
    try:
        origin = distribution("flasepformer").read_text("direct_url.json")
    except PackageNotFoundError:  # run from its folder, never installed
        origin = None
    return command_for(extra, origin)


def command_for(extra: str, origin: str | None) -> str:
    """Return that command, given `direct_url.json` of the installed package, if it has one.

    >>> command_for("media", None)
    'pip install "flasepformer[media]"'
    >>> command_for("media", '{"url": "file:///home/ann/flasepformer", "dir_info": {"editable": true}}')
    'pip install -e "/home/ann/flasepformer[media]"'
    >>> command_for("media", '{"url": "https://host/us/it", "vcs_info": {"vcs": "git"}}')
    'pip install "flasepformer[media] @ git+https://host/us/it"'
    """
    if origin is None:
        return f'pip install "flasepformer[{extra}]"'
    facts = json.loads(origin)
    url = str(facts["url"])
    if url.startswith("file:"):
        option = "-e " if facts.get("dir_info", {}).get("editable") else ""
        return f'pip install {option}"{url2pathname(urlparse(url).path)}[{extra}]"'
    system = facts.get("vcs_info", {}).get("vcs")
    return f'pip install "flasepformer[{extra}] @ {f"{system}+" if system else ""}{url}"'
