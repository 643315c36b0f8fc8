"""Use the installed package in a folder that is not the clone; with names of extras, what these bring too."""

import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import numpy as np
import soundfile

import flasepformer

COMMAND = Path(sysconfig.get_path("scripts"), "flasepformer")


def run(*words: str) -> str:
    """Run the command and return what it prints; an error ends the check."""
    done = subprocess.run([COMMAND, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"flasepformer {' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout


def write_speech(root: Path) -> None:
    """Write buzzing tones of four talkers, a folder for each."""
    times = np.arange(16_000) / 8000
    for number, folder in enumerate(("train/a", "train/b", "valid/c", "valid/d")):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for k in range(2):
            tone = np.sin(2 * np.pi * (100 * (number + 1) + 9 * k) * times) * np.sin(5 * times) ** 2
            soundfile.write(root / folder / f"{k}.wav", 0.1 * tone, 8000)


assert Path(flasepformer.__file__).is_relative_to(sys.prefix), "this is not the installed package"
assert run("--version").split()[-1] == metadata.version("flasepformer")
tracks = run("separate", "mixture.flac", "--out", "tracks", "--overwrite", "--device", "cpu").splitlines()
mixture, rate = soundfile.read("mixture.flac")
separated = [soundfile.read(track) for track in tracks]
assert [(len(samples), own) for samples, own in separated] == [(len(mixture), rate)] * 2
correlation = np.corrcoef([samples for samples, _ in separated])[0, 1]
assert abs(correlation) < 0.2, f"the tracks are alike: {correlation:.2f}"

extras = {word for word in sys.argv[1:] if not word.startswith("-")}
where = Path(f"runs/{Path(sys.prefix).name}-{len(extras)}")
model = "default"
if extras:
    write_speech(Path("speech"))
if "train" in extras:
    recipe = Path("recipe.yaml")
    recipe.write_text(
        "model_name: fla-tflocoformer-s\nmodel: {n_blocks: 1, n_channels: 16, n_heads: 2, n_groups: 2,"
        " attention_channels: 16, feed_forward_channels: 16, feed_forward_kernel: 4}\n"
        "data: {speech: speech, n_valid_mixtures: 1, valid_segment_seconds: 0.5}\n"
        "mixing: {segment_seconds: 0.5}\n"
        "optimization: {n_steps: 2, batch_size: 2, warmup_steps: 1, decay_steps: 0}\n"
    )
    run("train", str(recipe), "--out", str(where / "run"))
    run("train", str(recipe), "--out", str(where / "muon"), "--set", "optimization.optimizer=muon")
    model = str(where / "run/best")
if "evaluation" in extras:
    made = ("--split", "valid", "--kind", "set", "--count", "2", "--out", str(where / "set"))
    run("mixtures", "speech", *made)
    run("evaluate", model, str(where / "set/mix_clean.csv"), "--out", str(where / "scores"))
    run("report", str(where / "scores"), "--out", str(where / "report.html"))
if "export" in extras:
    run("export", model, str(where / "talk.onnx"))
    run("verify", str(where / "talk.onnx"), model)
print(f"{Path(sys.prefix).name} {' '.join(sys.argv[1:]) or 'without extras'}: works", flush=True)
