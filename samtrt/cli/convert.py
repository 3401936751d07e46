"""Converts a SAM checkpoint (Meta's .pth, Hugging Face's folder) into a parameter folder."""

import argparse
from pathlib import Path

from samtrt.cli.options import SIZES, Options, required
from samtrt.errors import InputError

CHECKPOINT = Path("sam_models", "sam_vit_h_4b8939.pth")


def add_options(options: Options) -> None:
    """Adds the command's options."""
    text = "Meta's .pth, or Hugging Face's folder or file, of any encoder size"
    source = options.add_subject("--checkpoint", text, CHECKPOINT)
    source.add(
        "--random",
        choices=SIZES,
        help="instead of a checkpoint: seeded random weights of this size, to measure speed with",
    )
    options.add(
        "--img-size",
        type=int,
        help="side of the pictures in pixels, for DeepEncoder and CellViT-SAM (default: their own)",
    )
    options.add("--seed", type=int, help="seed of --random (default: 0)")
    name = "the checkpoint's name without its suffix, or NAME-parameters of a folder"
    if options.home is not None:
        name = "sam_models/NAME, NAME being the checkpoint's"
    options.add("--output-dir", type=Path, help=f"the parameter folder (default: {name})")


def run(arguments: argparse.Namespace) -> None:
    """Converts, and prints what was found."""
    from samtrt.checkpoints import config
    from samtrt.checkpoints.family import at_size
    from samtrt.checkpoints.meta import read_checkpoint
    from samtrt.checkpoints.parameters import random_parameters, save_parameters

    home: Path | None = arguments.home
    if arguments.img_size is not None and arguments.random:
        raise InputError("--img-size is given with --random, whose models have one size; leave it")
    if arguments.seed is not None and not arguments.random:
        raise InputError("--seed is given without --random; a checkpoint needs none")
    if arguments.random:
        sizes = getattr(config, arguments.random)()
        parameters = random_parameters(sizes, arguments.seed or 0)
        output_dir = Path(f"{arguments.random}_random")
    else:
        checkpoint = required(arguments.checkpoint, "--checkpoint", "a .pth file, or use --random")
        parameters = read_checkpoint(checkpoint)
        if arguments.img_size is not None:
            parameters = at_size(parameters, arguments.img_size)
        output_dir = checkpoint.with_suffix("")
        if checkpoint.is_dir():  # Hugging Face's, which has a config.json of its own
            output_dir = checkpoint.with_name(checkpoint.resolve().name + "-parameters")
    if home is not None:
        output_dir = home / "sam_models" / output_dir.name
    output_dir = arguments.output_dir or output_dir
    save_parameters(parameters, output_dir)

    count = sum(tensor.size for tensor in parameters.tensors.values())
    encoder = parameters.encoder_config
    print(f"parameters   {count / 1e6:.1f} M in {len(parameters.tensors)} tensors")
    print(
        f"encoder      {encoder.depth} blocks of {encoder.embed_dim} channels, "
        f"{encoder.num_heads} heads, {encoder.img_size}² pixels, window {encoder.window_size}, "
        f"global attention in blocks {', '.join(map(str, encoder.global_attn_indexes))}"
    )
    if not encoder.is_plain:
        print(f"output       {' × '.join(map(str, encoder.output_shape))} of a picture")
    if parameters.note:
        print(f"note         {parameters.note}")
    print(f"written to   {output_dir}")
