"""Draw the curve of a training run: loss and SI-SNRi over the hours of mixtures heard.

Usage: python recipes/plot_curve.py CURVE.csv PICTURE.png
"""

import csv
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def main(curve: Path, picture: Path) -> None:
    """Draw what the run improved by, in training and in validation, and the learning rate."""
    with curve.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    hours = [float(row["hours_heard"]) for row in rows]
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(8, 5.5), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    upper.plot(
        hours,
        [-float(row["train_loss_db"] or "nan") for row in rows],
        lw=1,
        alpha=0.6,
        label="training: minus loss",
    )
    valid = [row for row in rows if row["valid_si_snr_improvement_db"]]
    upper.plot(
        [float(row["hours_heard"]) for row in valid],
        [float(row["valid_si_snr_improvement_db"]) for row in valid],
        marker=".",
        label="validation, unseen speakers: SI-SNRi",
    )
    upper.set_ylabel("dB")
    upper.set_ylim(bottom=-1)
    upper.legend()
    upper.grid(alpha=0.3)
    lower.plot(hours, [float(row["learning_rate"]) for row in rows])
    lower.set_ylabel("learning rate")
    lower.set_xlabel("hours of mixtures heard")
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
