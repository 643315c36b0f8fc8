"""`python -m flasepformer.onnx FILE RECORDING FOLDER`: one track per talker, without PyTorch."""

import argparse
import sys

from flasepformer.errors import FlasepformerError
from flasepformer.onnx.files import open_exported, separate_file


def main() -> int:
    """Separate one recording; returns the exit code, 3 where something is wrong with a file."""
    parser = argparse.ArgumentParser(prog="python -m flasepformer.onnx", description=__doc__)
    parser.add_argument("model", help="File that `flasepformer export` wrote: .onnx, or .zip of --long.")
    parser.add_argument("recording", help="Recording to separate.")
    parser.add_argument("folder", help="Folder for the tracks.")
    arguments = parser.parse_args()
    try:
        for path in separate_file(open_exported(arguments.model), arguments.recording, arguments.folder):
            print(path)
    except (FlasepformerError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
