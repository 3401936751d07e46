"""Every command that writes, in two versions that can be told apart by what they wrote."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from oracle import tiny_config, to_torch
from PIL import Image

from samtrt.checkpoints.parameters import (
    Parameters,
    load_parameters,
    random_parameters,
    save_parameters,
)
from samtrt.decoders.onnx import OnnxDecoder
from samtrt.encoders.engine import EngineInfo, read_engine, writing_engine
from samtrt.encoders.load import load_encoder
from samtrt.encoders.packed import write_packed

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ("a.png", "b.jpg", "deep/c.webp")
LABELS = ("1", "0")  # of the point of version 0 and 1


class LostError(Exception):
    """What was there before, or should be there now, is not."""


class Inputs:
    """Two tiny models, as checkpoints and as parameter folders with engines, and pictures.

    Args:
        folder: where they are once they are written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints = [folder / f"{version}.pth" for version in "ab"]
        self.params = [folder / f"params_{version}" for version in "ab"]
        self.pictures = folder / "pictures"
        self.sets = [_small_set(seed) for seed in range(2)]

    def write(self) -> None:
        """Writes them."""
        self.folder.mkdir()
        for made, checkpoint, params in zip(self.sets, self.checkpoints, self.params, strict=True):
            torch.save(to_torch(made.tensors), checkpoint)
            save_parameters(made, params)
            _write_engine(made, params / "engine")
        for seed, name in enumerate(PICTURES):
            path = self.pictures / name
            path.parent.mkdir(parents=True, exist_ok=True)
            _picture(seed).save(path)

    def version_of(self, sha256: str) -> int:
        """Which of the two sets has that digest."""
        return [made.sha256 for made in self.sets].index(sha256)


def _small_set(seed: int) -> Parameters:
    made = random_parameters(tiny_config(depth=2), seed)
    halves = {name: tensor.astype(np.float16) for name, tensor in made.tensors.items()}
    return replace(made, tensors=halves)


def _write_engine(made: Parameters, folder: Path) -> None:
    info = EngineInfo("cpu", made.encoder_config, "fp32", 1, made.sha256)
    with writing_engine(folder) as engine:
        write_packed(engine.file, made.encoder(), info)
        engine.info = info


def _picture(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((120, 90), Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class Command:
    """A command that writes into a folder.

    Attributes:
        name: as the console has it.
        share: of a campaign's kills, beside the others'.
        arguments: (inputs, output folder, version) → what follows the name.
        read: (inputs, output folder, reference) → the version that is there, whole; ``reference``
            has each version's files of an undisturbed run. Raises where it is neither.
        is_alone: whether a second one at the same time is refused.
        is_job: whether its outputs are written one by one, each for itself.
        is_same_every_time: whether a version's files are the same bytes in every run.
    """

    name: str
    share: int
    arguments: Callable[[Inputs, Path, int], list[object]]
    read: Callable[[Inputs, Path, "Reference"], int]
    is_alone: bool = False
    is_job: bool = False
    is_same_every_time: bool = True

    def argv(self, inputs: Inputs, output: Path, version: int) -> list[str]:
        """The arguments of the console program."""
        return [self.name, *map(str, self.arguments(inputs, output, version))]


Reference = list[dict[str, bytes]]


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones included."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def visible(names: object) -> set[str]:
    """Those that are no temporary files of killed runs."""
    assert isinstance(names, dict)
    return {name for name in names if not Path(name).name.startswith(".")}


def _read_parameters(inputs: Inputs, output: Path, _: Reference) -> int:
    return inputs.version_of(load_parameters(output).sha256)


def _read_engine(inputs: Inputs, output: Path, _: Reference) -> int:
    load_encoder(output)
    return inputs.version_of(read_engine(output)[0].parameters_sha256)


def _read_decoder(inputs: Inputs, output: Path, _: Reference) -> int:
    return inputs.version_of(OnnxDecoder(output / "mask_decoder.onnx").parameters_sha256)


def read_same(_: Inputs, output: Path, reference: Reference) -> int:
    """Files that are the same in every run: each is one of the two versions', whole."""
    found = files_of(output)
    versions = []
    for name in sorted(visible(found)):
        of = [number for number in range(2) if reference[number].get(name) == found[name]]
        if not of:
            raise LostError(f"{name} is of neither run ({len(found[name])} bytes)")
        versions.append(of[0])
    if not versions:
        raise FileNotFoundError("no file is there")
    return versions[0]


def _read_report(_: Inputs, output: Path, __: Reference) -> int:
    """A record, which has a time in it, and a plot that is whole."""
    record = json.loads((output / "record.json").read_text())
    if (output / "plot.png").exists():
        with Image.open(output / "plot.png") as image:
            image.load()
    return ["a", "b"].index(Path(record["pictures"][0]).stem)


def _picture_of(inputs: Inputs, version: int) -> Path:
    return inputs.pictures / PICTURES[version]


COMMANDS = {
    command.name: command
    for command in (
        Command(
            "convert",
            10,
            lambda i, o, v: ["--checkpoint", i.checkpoints[v], "--output-dir", o],
            _read_parameters,
            is_alone=True,
        ),
        Command(
            "build",
            10,
            lambda i, o, v: [
                i.params[v], "--output-dir", o, "--backend", "cpu", "--precision", "fp32",
                "--skip-parity-gate",
            ],
            _read_engine,
            is_alone=True,
            is_same_every_time=False,
        ),
        Command(
            "export-decoder",
            3,
            lambda i, o, v: [i.params[v], "--output", o / "mask_decoder.onnx"],
            _read_decoder,
        ),
        Command(
            "run",
            10,
            lambda i, o, v: [
                _picture_of(i, 0), "--params", i.params[0], "--point-coords", 60, 40 + 9 * v,
                "--multimask", "--output", o / "mask.png",
            ],
            read_same,
        ),
        Command(
            "everything",
            10,
            lambda i, o, v: [
                i.pictures, "--params", i.params[0], "--output-dir", o, "--points-per-side",
                2 + v, "--pred-iou-thresh", 0, "--stability-score-thresh", 0,
            ],
            read_same,
            is_alone=True,
            is_job=True,
        ),
        Command(
            "evaluate",
            3,
            lambda i, o, v: [
                "--engine", i.params[v] / "engine", "--decoder", i.params[v], "--scenes", 1,
                "--json", o / "record.json",
            ],
            read_same,
        ),
        Command(
            "compare",
            3,
            lambda i, o, v: [
                i.params[0], "--image", _picture_of(i, v), "--json", o / "record.json",
            ],
            _read_report,
            is_same_every_time=False,
        ),
        Command(
            "benchmark",
            2,
            lambda i, o, v: [
                i.params[0], "--image", _picture_of(i, v), "--runs", 2, "--seconds", 0.1,
                "--json", o / "record.json", "--plot", o / "plot.png",
            ],
            _read_report,
            is_job=True,
            is_same_every_time=False,
        ),
    )
}  # fmt: skip


def enter_checkout() -> None:
    """The scenes of ``evaluate`` are drawn by the checkout that is the current folder."""
    os.chdir(ROOT)
