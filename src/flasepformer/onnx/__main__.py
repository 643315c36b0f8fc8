"""`python -m flasepformer.onnx FILE.onnx RECORDING FOLDER`: one track per talker, without PyTorch."""

import argparse
import sys
from pathlib import Path

from flasepformer.audio import read_audio, resample, write_audio
from flasepformer.errors import FlasepformerError
from flasepformer.onnx import ExportedSeparator


def main() -> int:
    """Separate one recording; returns the exit code, 3 where something is wrong with a file."""
    parser = argparse.ArgumentParser(prog="python -m flasepformer.onnx", description=__doc__)
    parser.add_argument("model", help="File that `flasepformer export` wrote.")
    parser.add_argument("recording", type=Path, help="Recording to separate.")
    parser.add_argument("folder", type=Path, help="Folder for the tracks.")
    arguments = parser.parse_args()
    try:
        separator = ExportedSeparator(arguments.model)
        recording = read_audio(arguments.recording)
        mono, rate = recording.samples.mean(axis=0), recording.sample_rate
        tracks = separator.tracks(resample(mono, rate, separator.sample_rate))
        arguments.folder.mkdir(parents=True, exist_ok=True)
        for number, track in enumerate(tracks, start=1):
            path = arguments.folder / f"{arguments.recording.stem}_{number}.wav"
            write_audio(path, track, separator.sample_rate)
            print(path)
    except (FlasepformerError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
