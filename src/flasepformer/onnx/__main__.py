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
    parser.add_argument(
        "--memory-mb", type=int, help="Of a .zip: memory for frames; the rest goes to TMPDIR."
    )
    parser.add_argument("--threads", type=int, help="For one operation; by default onnxruntime's choice.")
    arguments = parser.parse_args()
    memory_bytes = None if arguments.memory_mb is None else arguments.memory_mb * 10**6
    try:
        separator = open_exported(arguments.model, memory_bytes=memory_bytes, n_threads=arguments.threads)
        tell = _show if sys.stderr.isatty() else None
        for path in separate_file(separator, arguments.recording, arguments.folder, tell):
            print(path)
    except (FlasepformerError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0


def _show(share: float) -> None:
    """Show the share that is done, on one line."""
    print(f"\r{share:4.0%}", end="\n" if share >= 1 else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
