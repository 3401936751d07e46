"""Compares the image encoder with Meta's PyTorch implementation on the same parameters."""

import argparse

from samtrt.cli.options import Options, required


def add_options(options: Options) -> None:
    """Adds the command's options."""
    options.add_params()
    options.add_engines("compare")
    options.add_pictures("--image", "pictures")
    options.add_json()


def run(arguments: argparse.Namespace) -> None:
    """Compares, and prints a table."""
    import torch

    from samtrt.building.accuracy import load_pictures
    from samtrt.checkpoints.parameters import load_parameters
    from samtrt.console import progress_steps
    from samtrt.files import write_json
    from samtrt.reports.benchmarking import describe, environment
    from samtrt.reports.comparison import accuracy_table, measure_accuracy, record_head
    from samtrt.reports.contestants import meta_contestants, our_contestants

    parameters = load_parameters(required(arguments.params, "--params", "a parameter folder"))
    pictures = load_pictures(arguments.image, parameters.encoder_config.img_size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reference, *peers = meta_contestants(parameters, device)
    contestants = [*peers, *our_contestants(parameters, arguments.engine)]
    with progress_steps(1 + len(contestants)) as announce:
        rows = measure_accuracy(parameters, reference, contestants, pictures, announce)

    record = environment()
    print(f"Against {reference.name}; {len(pictures)} pictures; {describe(record)}\n")
    print(accuracy_table(rows))
    if parameters.note:
        print(f"\nnote: {parameters.note}")
    if arguments.json:
        write_json(
            arguments.json,
            {
                **record_head(record, parameters, pictures),
                "reference": reference.name,
                "rows": [row.to_json() for row in rows],
            },
        )
