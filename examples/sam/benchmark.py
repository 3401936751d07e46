"""Times the image encoder beside Meta's PyTorch implementation, once its output was checked."""

import argparse
import sys
from pathlib import Path

import torch

from samtrt.building.accuracy import load_pictures
from samtrt.checkpoints.parameters import load_parameters
from samtrt.console import progress_steps, run_script
from samtrt.files import write_json
from samtrt.pictures.reading import load_image
from samtrt.reports.benchmarking import describe, environment, plot_throughput
from samtrt.reports.comparison import measure_speed, speed_table
from samtrt.reports.contestants import meta_contestants, our_contestants
from samtrt.reports.end_to_end import EndToEnd, end_to_end_table, measure_end_to_end
from samtrt.sam import load_sam

HERE = Path(__file__).resolve().parent


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--params",
        type=Path,
        default=HERE / "sam_models" / "sam_demo",
        help="parameter folder made by params_convert.py (default: sam_models/sam_demo)",
    )
    parser.add_argument(
        "--engine",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="engine folders to time as well, built from the same parameters",
    )
    parser.add_argument(
        "--backend",
        nargs="+",
        choices=("cuda", "cpu"),
        default=["cuda"] if torch.cuda.is_available() else ["cpu"],
        help="backends to time without an engine (default: cuda where there is a GPU, else cpu)",
    )
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1], metavar="N")
    parser.add_argument(
        "--image",
        type=Path,
        nargs="+",
        default=sorted((HERE / "images").glob("*.jpg")),
        metavar="FILE",
        help="pictures that the inputs rotate through (default: those in images/)",
    )
    parser.add_argument("--runs", type=int, default=50, help="at most so many a row (default: 50)")
    parser.add_argument(
        "--seconds", type=float, default=30, help="at most about so long a row (default: 30)"
    )
    parser.add_argument(
        "--end-to-end",
        action="store_true",
        help="time pictures in host memory to masks in host memory as well, by stage",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record here")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a PNG here")
    return parser.parse_args()


def time_end_to_end(arguments: argparse.Namespace) -> dict[str, EndToEnd]:
    """Each backend on the first picture."""
    image = load_image(arguments.image[0])
    times = {}
    for backend in arguments.backend:
        sam = load_sam(arguments.params, backend=backend, device=backend)
        runs = arguments.runs if backend == "cuda" else min(arguments.runs, 5)
        times[f"samtrt {backend}"] = measure_end_to_end(sam, image, runs, warm_up=1)
    return times


def main() -> None:
    arguments = parse_arguments()
    parameters = load_parameters(arguments.params)
    pictures = load_pictures(arguments.image, parameters.encoder_config.img_size)
    peers = meta_contestants(parameters, torch.device(arguments.backend[0]))
    contestants = peers + our_contestants(
        parameters, arguments.engine, arguments.backend, max(arguments.batch_size)
    )
    with progress_steps(1 + len(contestants) * len(arguments.batch_size)) as announce:
        rows = measure_speed(
            peers[0],
            contestants,
            pictures,
            arguments.batch_size,
            arguments.runs,
            arguments.seconds,
            announce,
        )

    end_to_end = time_end_to_end(arguments) if arguments.end_to_end else {}

    record = environment()
    config = parameters.encoder_config
    title = f"{config.depth} blocks of {config.embed_dim} channels, {config.img_size}² pixels"
    print(f"{title}; {describe(record)}\n\n{speed_table(rows)}")
    if end_to_end:
        print(f"\nHost memory to host memory, one point\n\n{end_to_end_table(end_to_end)}")
    if parameters.note:
        print(f"\nnote: {parameters.note}")
    if arguments.json:
        write_json(
            arguments.json,
            {
                "environment": record,
                "encoder": config.to_json(),
                "parameters_sha256": parameters.sha256,
                "note": parameters.note,
                "pictures": [picture.name for picture in pictures],
                "rows": [row.to_json() for row in rows],
                "end_to_end": {name: times.to_json() for name, times in end_to_end.items()},
            },
        )
    if arguments.plot:
        throughput: dict[str, dict[int, float]] = {}
        for row in rows:
            if row.images_per_second:
                throughput.setdefault(row.name, {})[row.batch_size] = row.images_per_second
        plot_throughput(arguments.plot, {"": throughput}, title, describe(record))


if __name__ == "__main__":
    sys.exit(run_script(main))
