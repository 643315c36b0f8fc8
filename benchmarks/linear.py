"""Measure how forward time and peak memory of a model grow with the length of the recording.

Each length runs in a process of its own, all in one call, so that the ratios hold on a noisy machine too.

Usage: python benchmarks/linear.py --model NAME --seconds 60 120 --threads 1 --repeats 3 --out FILE.json
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path


def measure(model_name: str, seconds: float, threads: int) -> dict[str, float]:
    """Return forward time in s, and peak memory in MiB on top of what the loaded program takes."""
    import torch

    from flasepformer.models import load_model

    torch.set_num_threads(threads)
    model = load_model(model_name)
    n_samples = round(seconds * model.sample_rate)
    mixture = 0.1 * torch.randn(1, n_samples, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        model(mixture[:, : model.sample_rate])  # first calls set things up
        before = peak_mebibytes()
        started, worked = time.perf_counter(), os.times()
        model(mixture)
        taken, done = time.perf_counter() - started, os.times()
    return {
        "seconds": seconds,
        "forward_seconds": taken,
        "user_seconds": done.user - worked.user,
        "system_seconds": done.system - worked.system,
        "peak_mebibytes": peak_mebibytes() - before,
    }


def peak_mebibytes() -> float:
    """Return the largest resident memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Run every length several times in turn, print the best of each and the ratios."""
    parser = argparse.ArgumentParser(description="Measure how a model's cost grows with the recording.")
    parser.add_argument("--model", default="fla-sepreformer-b")
    parser.add_argument("--seconds", type=float, nargs="+", default=[60.0, 120.0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.model, arguments.measure, arguments.threads)))
        return
    rows = []
    for _ in range(arguments.repeats):
        for seconds in arguments.seconds:
            command = [sys.executable, __file__, "--measure", str(seconds), "--model", arguments.model]
            command += ["--threads", str(arguments.threads)]
            rows.append(
                json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
            )
    best = {
        seconds: {
            key: min(row[key] for row in rows if row["seconds"] == seconds)
            for key in rows[0]
            if key != "seconds"
        }
        for seconds in arguments.seconds
    }
    for seconds, row in best.items():
        taken, peak = row["forward_seconds"], row["peak_mebibytes"]
        print(f"{seconds:7.0f} s   forward {taken:7.2f} s   peak {peak:8.0f} MiB")
    first, last = best[arguments.seconds[0]], best[arguments.seconds[-1]]
    ratios = {key: last[key] / first[key] for key in first}
    growth = arguments.seconds[-1] / arguments.seconds[0]
    time_ratio, memory_ratio = ratios["forward_seconds"], ratios["peak_mebibytes"]
    print(f"recording x {growth:g}: time x {time_ratio:.2f}, memory x {memory_ratio:.2f}")
    if arguments.out:
        content = {
            "command": " ".join(["python", *sys.argv]),
            "machine": f"{processor()}, {os.cpu_count()} cores, {platform.system()}",
            "threads": arguments.threads,
            "best": best,
            "ratios": ratios,
            "all": rows,
        }
        arguments.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def processor() -> str:
    """Return the processor's name."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
