"""Times the image encoder beside Meta's PyTorch implementation, once its output was checked."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from samtrt.cli.options import Options, required

if TYPE_CHECKING:
    from samtrt.reports.end_to_end import EndToEnd

PEERS = ("torch.compile", "onnxruntime", "openvino")  # those of reports.runtimes


def add_options(options: Options) -> None:
    """Adds the command's options."""
    options.add_params()
    options.add_engines("time")
    options.add(
        "--backend",
        nargs="+",
        choices=("cuda", "cpu"),
        help="backends to time without an engine (default: cuda where there is a GPU, else cpu)",
    )
    options.add(
        "--batch-size",
        type=int,
        nargs="+",
        default=[1],
        metavar="N",
        help="pictures in a call (default: 1)",
    )
    options.add(
        "--peers",
        nargs="+",
        choices=PEERS,
        default=[],
        help="Meta's encoder by these as well, beside Meta's own code",
    )
    options.add_pictures("--image", "pictures that the inputs rotate through")
    options.add("--runs", type=int, default=50, help="at most so many a row (default: 50)")
    options.add(
        "--seconds", type=float, default=30, help="at most about so long a row (default: 30)"
    )
    options.add(
        "--end-to-end",
        action="store_true",
        help="time pictures in host memory to masks in host memory as well, by stage",
    )
    options.add_json()
    options.add_output("--plot", "write a PNG here")


def run(arguments: argparse.Namespace) -> None:
    """Times, and prints a table."""
    import torch

    from samtrt.building.accuracy import load_pictures
    from samtrt.checkpoints.parameters import load_parameters
    from samtrt.console import progress_steps
    from samtrt.files import write_json
    from samtrt.reports.benchmarking import describe, environment, plot_throughput
    from samtrt.reports.comparison import measure_speed, record_head, speed_table
    from samtrt.reports.contestants import meta_contestants, our_contestants
    from samtrt.reports.end_to_end import end_to_end_table
    from samtrt.reports.runtimes import peer_contestants

    backends = arguments.backend or ["cuda" if torch.cuda.is_available() else "cpu"]
    params = required(arguments.params, "--params", "a parameter folder")
    parameters = load_parameters(params)
    pictures = load_pictures(arguments.image, parameters.encoder_config.img_size)
    device = torch.device(backends[0])
    peers = meta_contestants(parameters, device)
    contestants = [
        *peers,
        *peer_contestants(parameters, arguments.peers, device, arguments.batch_size),
        *our_contestants(parameters, arguments.engine, backends, max(arguments.batch_size)),
    ]
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

    end_to_end: dict[str, EndToEnd] = {}
    if arguments.end_to_end:
        end_to_end = _time_end_to_end(params, arguments.image[0], backends, arguments.runs)

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
                **record_head(record, parameters, pictures),
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


def _time_end_to_end(
    params: Path, picture: Path, backends: list[str], runs: int
) -> dict[str, "EndToEnd"]:
    """Each backend on one picture."""
    from samtrt.pictures.reading import load_image
    from samtrt.reports.end_to_end import measure_end_to_end
    from samtrt.sam import load_sam

    image = load_image(picture)
    times = {}
    for backend in backends:
        sam = load_sam(params, backend=backend, device=backend)
        times[f"samtrt {backend}"] = measure_end_to_end(
            sam, image, runs if backend == "cuda" else min(runs, 5), warm_up=1
        )
    return times
