"""Mutated checkpoints, parameter folders, engine folders and embeddings.

Each is refused in one line, or is the same model: no traceback, no other weights or sizes.
``SAMTRT_FUZZ`` sets the number of cases of each kind for a long run.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import tiny_config, to_torch

from samtrt.checkpoints.meta import read_checkpoint
from samtrt.checkpoints.parameters import (
    Parameters,
    load_parameters,
    random_parameters,
    save_parameters,
)
from samtrt.encoders.engine import EngineInfo, read_engine_info, write_engine
from samtrt.encoders.load import load_encoder
from samtrt.encoders.packed import write_packed
from samtrt.errors import SamtrtError
from samtrt.files import sha256_of
from samtrt.masks.predictor import SamPredictor
from samtrt.sam import sam_from_parameters

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = int(os.environ.get("SAMTRT_FUZZ", "60"))
SECONDS = 20  # a case that takes longer hangs


def small_parameters() -> Parameters:
    made = random_parameters(tiny_config(), seed=5)
    halves = {name: tensor.astype(np.float16) for name, tensor in made.tensors.items()}
    return replace(made, tensors=halves)


PARAMETERS = small_parameters()
X = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))

# What JSON from nobody's hand may have in a field's place.
HOSTILE: list[Any] = [
    None, True, -1, 0, 1, 2, 10**9, 10**400, 1.5, float("nan"), float("inf"), "", "x", "../../x",
    "os", "\x00\n", [], [0], [[[]]], [10**9] * 3, {}, {"a": {}}, "9" * 70, "a" * 64, "fp16",
    "bf16", "cuda", "tensorrt", list(range(2000)),
]  # fmt: skip


def mutated(content: bytes, generator: np.random.Generator) -> bytes:
    """The content with one to three changes of bytes."""
    data = bytearray(content)
    for _ in range(generator.integers(1, 4)):
        if not data:
            break
        # Headers and ends decide more than the values in the middle.
        span = len(data) if generator.random() < 0.5 else min(len(data), 4096)
        at = int(generator.integers(span))
        if generator.random() < 0.3:
            at = len(data) - 1 - at
        size = int(generator.integers(1, 64))
        kind = generator.integers(6)
        if kind == 0:
            data[at] ^= 1 << int(generator.integers(8))
        elif kind == 1:
            data[at : at + size] = generator.bytes(size)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + size]
        elif kind == 4:
            data[at:at] = data[at : at + size]
        else:
            data[at : at + size] = bytes([0xFF, 0][int(generator.integers(2))] for _ in range(size))
    return bytes(data)


def mutated_json(text: str, generator: np.random.Generator) -> str:
    """The JSON object with a field changed, dropped or added, at any depth."""
    value = json.loads(text)
    holder = value
    while True:
        key = str(generator.choice(list(holder)))
        if not isinstance(holder[key], dict) or not holder[key] or generator.random() < 0.2:
            break
        holder = holder[key]
    kind = generator.integers(6)
    if kind == 0:
        del holder[key]
    elif kind == 1:
        holder["surplus"] = HOSTILE[int(generator.integers(len(HOSTILE)))]
    elif kind == 2 and isinstance(holder[key], int):
        holder[key] += int(generator.choice([-1, 1, 2, 16]))
    else:
        holder[key] = HOSTILE[int(generator.integers(len(HOSTILE)))]
    return json.dumps(value)


def refused_or(read: Callable[[], bool]) -> bool:
    """Whether it was refused; otherwise ``read`` has to say that all is as it was."""
    try:
        assert read(), "another model was accepted"
    except SamtrtError as error:
        assert "\n" not in str(error) and len(str(error)) < 10_000
        return True
    return False


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parameters")
    save_parameters(PARAMETERS, folder)
    return folder


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    info = EngineInfo("cpu", tiny_config(), "fp32", 2, PARAMETERS.sha256)

    def produce(path: Path) -> EngineInfo:
        write_packed(path, PARAMETERS.encoder(), info)
        return info

    write_engine(folder, produce)
    return folder


@pytest.mark.timeout(CASES * SECONDS)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_checkpoints(tmp_path: Path, legacy: bool) -> None:
    generator = np.random.default_rng(1)
    path = tmp_path / "sam.pth"
    torch.save(to_torch(PARAMETERS.tensors), path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    refused = 0
    for _ in range(CASES):
        path.write_bytes(mutated(content, generator))
        # PyTorch's format before 1.6 has no checksums: other values cannot be told.
        refused += refused_or(lambda: legacy | (read_checkpoint(path).sha256 == PARAMETERS.sha256))
    assert refused > CASES / 3


@pytest.mark.timeout(CASES * SECONDS)
@pytest.mark.parametrize("name", ["parameters.safetensors", "config.json"])
def test_parameter_folders(folder: Path, tmp_path: Path, name: str) -> None:
    generator = np.random.default_rng(2)
    copy = shutil.copytree(folder, tmp_path / "copy")
    content = (folder / name).read_bytes()
    refused = 0

    def is_same() -> bool:
        found = load_parameters(copy)
        return (found.sha256, found.encoder_config) == (PARAMETERS.sha256, tiny_config())

    for case in range(CASES):
        if name == "config.json" and case % 2:
            changed = mutated_json(content.decode(), generator).encode()
        else:
            changed = mutated(content, generator)
        (copy / name).write_bytes(changed)
        refused += refused_or(is_same)
    assert refused > CASES / 2


@pytest.mark.timeout(CASES * SECONDS)
@pytest.mark.parametrize("name", ["encoder.engine", "encoder.json"])
@pytest.mark.parametrize("resealed", [False, True], ids=["", "resealed"])
def test_engine_folders(engine: Path, tmp_path: Path, name: str, resealed: bool) -> None:
    generator = np.random.default_rng(3)
    copy = shutil.copytree(engine, tmp_path / "copy")
    content, sidecar = (engine / name).read_bytes(), (engine / "encoder.json").read_text()
    said = read_engine_info(engine).content
    expected = load_encoder(engine)(X)
    refused = 0

    def is_same() -> bool:
        if read_engine_info(copy).content != said:
            return load_encoder(copy) is None
        return torch.equal(load_encoder(copy)(X), expected)

    for _ in range(CASES):
        if name == "encoder.json" and resealed:
            (copy / name).write_text(mutated_json(sidecar, generator))
        else:
            (copy / name).write_bytes(mutated(content, generator))
        if name == "encoder.engine" and resealed:
            # A forger who knows the digest: other weights cannot be told, but nothing falls over.
            sha256 = sha256_of(copy / name)
            forged = json.dumps(json.loads(sidecar) | {"engine_sha256": sha256})
            (copy / "encoder.json").write_text(forged)
            refused += refused_or(lambda: load_encoder(copy)(X).shape == expected.shape)
        else:
            refused += refused_or(is_same)
    assert refused > CASES / 4


@pytest.mark.timeout(CASES * SECONDS)
def test_embeddings(tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    image = generator.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    predictor = SamPredictor(sam_from_parameters(PARAMETERS, device="cpu", precision="fp32"))
    predictor.set_image(image)
    expected = predictor.features.clone()
    path = tmp_path / "embedding"
    predictor.save_embedding(path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    refused = 0
    for case in range(CASES):
        if case % 2:
            record = mutated_json(header["__metadata__"]["embedding"], generator)
            forged = {**header, "__metadata__": {**header["__metadata__"], "embedding": record}}
            text = json.dumps(forged).encode()
            path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
        else:
            path.write_bytes(mutated(content, generator))

        def is_same() -> bool:
            predictor.load_embedding(path, image)
            sizes = predictor.original_size, predictor.input_size
            return sizes == ((60, 80), (96, 128)) and torch.equal(predictor.features, expected)

        refused += refused_or(is_same)
    assert refused > CASES / 3
