"""Draws log.csv of a training run: mean IoU by prompt, loss and learning rate over time."""

import argparse
import csv
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from samtrt.console import run_script
from samtrt.errors import InputError
from samtrt.files import replacing

CURVES = {
    "iou_click": "1 click, best by predicted IoU",
    "iou_box": "box, with noise",
    "iou_round2": "second round of prompts",
    "iou_round3": "third round of prompts",
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path, help="log.csv of a run")
    parser.add_argument("output", type=Path, help="picture to write (.png, .svg)")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if not arguments.log.is_file():
        raise InputError(f"no log at {arguments.log}; expected the log.csv that training wrote")
    with arguments.log.open(newline="") as file:
        rows = list(csv.DictReader(file))

    def column(name: str) -> list[float]:
        return [float(row[name] or "nan") for row in rows]

    minutes = [seconds / 60 for seconds in column("seconds")]
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 7), sharex=True, layout="constrained")
    for name, label in CURVES.items():
        top.plot(minutes, column(name), label=label, linewidth=1.2)
    top.set(ylabel="mean IoU on scenes not seen before", ylim=(0, 1))
    top.legend(loc="lower right")
    top.grid(alpha=0.3)
    bottom.plot(minutes, column("loss"), color="tab:gray", linewidth=1.2)
    bottom.set(ylabel="loss, all rounds", xlabel="minutes of training", yscale="log")
    bottom.grid(alpha=0.3)
    rate = bottom.twinx()
    rate.plot(minutes, column("learning_rate"), color="tab:orange", linewidth=1.2)
    rate.set_ylabel("learning rate", color="tab:orange")
    with replacing(arguments.output) as path:
        figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(run_script(main))
