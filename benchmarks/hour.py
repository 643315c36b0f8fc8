"""Memory, computing time and drop-outs of `flasepformer live` while it replays a recording for hours.

Usage: python benchmarks/hour.py RECORDING [--hours 1] [--speed 10] [--out hour.csv] [-- --model default ...]

The recording is repeated until it is so long. What stands after -- goes to the command. Every few seconds of
the clock a row is written: seconds of the tracks, memory and CPU time of the process; at the end, what the
command says of how it went. Linux only.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import soundfile

FIELDS = ["wall_seconds", "track_seconds", "resident_mb", "cpu_seconds"]


def repeat(recording: Path, target: Path, seconds: float) -> None:
    """Write a recording again and again until it is so long, in 16 bits."""
    samples, rate = soundfile.read(recording, dtype="int16")
    n_left = round(seconds * rate)
    with soundfile.SoundFile(target, "w", rate, 1 if samples.ndim == 1 else samples.shape[1]) as file:
        while n_left:
            part = samples[:n_left]
            file.write(part)
            n_left -= len(part)


def measure(pid: int, track: Path) -> list[float]:
    """Return seconds of the track, resident memory in MB and CPU seconds of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    resident = int(status.partition("VmRSS:")[2].split()[0]) / 1000 if "VmRSS:" in status else float("nan")
    times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    cpu = sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
    n_seconds = soundfile.info(track).duration if track.exists() else 0.0
    return [round(n_seconds, 1), round(resident, 1), round(cpu, 1)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Replay, measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recording", type=Path)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--speed", type=float, default=10.0)
    parser.add_argument("--every", type=float, default=10.0, help="seconds of the clock between two rows")
    parser.add_argument("--out", type=Path, default=Path("hour.csv"))
    words = list(sys.argv[1:] if arguments is None else arguments)
    end = words.index("--") if "--" in words else len(words)
    options, rest = parser.parse_args(words[:end]), words[end + 1 :]
    with tempfile.TemporaryDirectory() as name, options.out.open("w", newline="") as file:
        folder = Path(name)
        repeat(options.recording, folder / "hours.wav", 3600 * options.hours)
        rows = csv.writer(file)
        rows.writerow(FIELDS)
        words = [
            "live",
            "--replay",
            folder / "hours.wav",
            "--speed",
            options.speed,
            "--out",
            folder,
            "--json",
        ]
        command = [sys.executable, "-m", "flasepformer", *map(str, words), *rest]
        began = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                while process.poll() is None:
                    now = measure(process.pid, folder / "hours_speaker1.wav")
                    rows.writerow([round(time.monotonic() - began, 1), *now])
                    file.flush()
                    time.sleep(options.every)
                told = json.loads(process.stdout.read() if process.stdout else "null")
            finally:
                process.terminate()
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
