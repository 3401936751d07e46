"""Which model a command works with: a checkpoint, a parameter folder, or an engine folder."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from samtrt.cli.options import DEMO, ENGINE, PARAMS, Options
from samtrt.errors import InputError
from samtrt.hints import command

if TYPE_CHECKING:
    from samtrt.checkpoints.parameters import Parameters
    from samtrt.decoders.protocol import Decoder


@dataclass(frozen=True)
class ChosenModel:
    """Where a model's parts are.

    Attributes:
        params: the parameter folder; None where only an engine folder was named.
        engine: the engine folder.
        parameters: those of ``params`` where they were read already.
    """

    params: Path | None
    engine: Path
    parameters: "Parameters | None" = None

    def parameter_folder(self) -> Path:
        """The parameter folder, for commands that need the whole model.

        Raises:
            InputError: only an engine folder was named.
        """
        if self.params is None:
            raise InputError(
                "--engine holds an image encoder alone; name the parameter folder that it was "
                "built from with --params"
            )
        return self.params

    def decoder(self, path: Path | None = None) -> "Decoder":
        """The mask decoder that was asked for, or the model's own.

        Args:
            path: an ONNX file or a parameter folder; None for the model's own, which for an
                engine folder alone is the ONNX file beside it, or the parameters around it.

        Raises:
            SamtrtError: it is missing or cannot be used.
        """
        from samtrt.decoders.load import load_decoder

        if path is None and self.parameters is not None:
            import torch

            from samtrt.decoders.torch import TorchDecoder

            device = "cuda" if torch.cuda.is_available() else "cpu"
            return TorchDecoder.from_parameters(self.parameters, device)
        from samtrt.checkpoints.parameters import CONFIG_FILE

        own = self.params or self.engine.parent / "mask_decoder.onnx"
        if self.params is None and not own.exists():
            around = self.engine.parent
            own = around if (around / CONFIG_FILE).is_file() else own
        return load_decoder(path or own)


def add_model(options: Options, backend_of: str = "--engine") -> None:
    """Adds ``--checkpoint``, ``--params``, ``--engine`` and ``--backend``."""
    options.add(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="Meta's .pth, or a name that `samtrt models` lists; it is converted and its engine "
        "is built once, and both are kept in the user's cache",
    )
    options.add("--params", type=Path, metavar="DIR", help=f"{PARAMS}, in place of --checkpoint")
    example = "PARAMS/engine" if options.home is None else "sam_models/sam_demo/engine"
    options.add("--engine", type=Path, metavar="DIR", help=f"{ENGINE} (default: {example})")
    options.add_backend(engine=backend_of)


def chosen_model(arguments: argparse.Namespace, default: Path | str | None = None) -> ChosenModel:
    """The model that the options name; a checkpoint is prepared, which takes its time once.

    Args:
        default: checkpoint of the console command where no option names a model.

    Raises:
        InputError: none is named, or two are.
        SamtrtError: the checkpoint cannot be used, or its engine not be built.
    """
    if arguments.checkpoint is not None and (arguments.params or arguments.engine):
        other = "--params" if arguments.params else "--engine"
        raise InputError(
            f"--checkpoint and {other} both name a model; give one of them (a checkpoint's engine "
            "is built by itself)"
        )
    if arguments.params is not None:
        return ChosenModel(arguments.params, arguments.engine or arguments.params / "engine")
    if arguments.engine is not None:
        return ChosenModel(None, arguments.engine)
    checkpoint = arguments.checkpoint
    if checkpoint is None and arguments.home is not None:
        return ChosenModel(None, arguments.home / DEMO / "engine")
    checkpoint = checkpoint or default
    if checkpoint is None:
        raise InputError(
            "no model is named; give --checkpoint FILE, or --params FOLDER, or --checkpoint demo "
            f"for the small demo model; `{command('models')}` lists what there is"
        )
    from samtrt.models.cache import prepare
    from samtrt.models.catalogue import find_checkpoint

    prepared = prepare(find_checkpoint(checkpoint), arguments.backend)
    return ChosenModel(prepared.folder, prepared.engine, prepared.parameters)
