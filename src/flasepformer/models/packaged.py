"""The small networks that come with the package."""

from importlib.resources import as_file, files
from pathlib import Path
from typing import TypeVar

from safetensors.torch import load_file
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def with_weights(network: Network, path: Path) -> Network:
    """Give a network the weights in a file, in single precision, to be used and not trained."""
    network.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return network.eval()


def packaged(network: Network, name: str) -> Network:
    """Give a network the weights in a file of the package, named from its folder on."""
    with as_file(files("flasepformer") / name) as path:
        return with_weights(network, path)
