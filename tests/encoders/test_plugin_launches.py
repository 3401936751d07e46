"""The plugin's C++ launches what the kernels' Python launches: arguments byte by byte.

The driver is a stand-in, whose descriptors are the arguments that they are made of. There is no
TensorRT. With its headers (``SAMTRT_TENSORRT_INCLUDE=FOLDER[:FOLDER…]``, a folder a version) the
library is built as a user builds it and driven as that version would drive it.
"""

import hashlib
import itertools
import os
import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from plugin_replay import told_apart
from torch import Tensor

from samtrt.checkpoints.config import EncoderConfig
from samtrt.checkpoints.parameters import random_parameters
from samtrt.encoders.cuda.hopper_block import pack_block
from samtrt.encoders.cuda.packing import EncoderParameters
from samtrt.encoders.tensorrt import plugin_library
from samtrt.encoders.tensorrt.launches import PluginLayer
from samtrt.encoders.tensorrt.plugin_library import build_library
from samtrt.encoders.tensorrt.plugin_network import PROCESSORS, _Layers
from samtrt.kernels.hopper import launch as launching
from samtrt.kernels.hopper.compiler import Program, bindings
from samtrt.kernels.hopper.global_attention import global_launch
from samtrt.kernels.hopper.launch import Launch
from samtrt.kernels.hopper.linear import Linear, linear_launch, statistics_parts
from samtrt.kernels.hopper.window_attention import window_launch

HERE = Path(__file__).resolve().parent
CFG = EncoderConfig(
    embed_dim=320, depth=2, num_heads=4, global_attn_indexes=(1,), window_size=7, img_size=256
)
SIDE, C, HEADS = CFG.grid_size, CFG.embed_dim, CFG.num_heads
MOST = 3
INPUTS, OUTPUTS, WORKSPACE = (0x100000, 0x200000), (0x300000, 0x400000), 0x500000


# --------------------------------------------------------------- what Python launches


class At(torch.Tensor):
    """A tensor of which only the address is real."""

    address: int

    def data_ptr(self) -> int:
        return self.address


def at(address: int, *shape: int, dtype: torch.dtype = torch.float16) -> At:
    tensor = torch.empty(shape, dtype=dtype, device="meta").as_subclass(At)
    tensor.address = address
    return tensor


def descriptor(*arguments: Any) -> tuple[int, Any]:
    """As stub_driver.cpp."""
    kind, rank, address, sizes, strides, box, steps, *modes = arguments
    content = bytes([int(kind), rank, *map(int, modes)]).ljust(8, b"\0")
    content += struct.pack("<Q", address)
    for values, code, width in ((sizes, "Q", 32), (strides, "Q", 24), (box, "I", 16)):
        content += struct.pack(f"<{len(values)}{code}", *map(int, values)).ljust(width, b"\0")
    content += struct.pack(f"<{rank}I", *map(int, steps))
    kept.append(torch.frombuffer(bytearray(content.ljust(128, b"\0")), dtype=torch.uint8))
    return 0, SimpleNamespace(getPtr=kept[-1].data_ptr)


kept: list[Tensor] = []


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, nvrtc = bindings()
    names = {name: getattr(driver, name) for name in dir(driver) if name.startswith(("CU", "cuu"))}
    stand_in = SimpleNamespace(**names, cuTensorMapEncodeTiled=descriptor)
    monkeypatch.setattr(launching, "bindings", lambda: (stand_in, nvrtc))
    monkeypatch.setattr(Program, "machine_code", told_apart)


def rows_of(batch: int) -> int:
    return batch * SIDE * SIDE


def statistics(address: int, batch: int) -> At:
    parts = statistics_parts(rows_of(batch), C, PROCESSORS)
    return at(address, parts, rows_of(batch), 2, dtype=torch.float32)


def linear(batch: int, constants: list[int], kind: str) -> Launch:
    inner, columns = {"qkv": (C, 3 * C), "lin1": (C, 4 * C), "proj": (C, C), "lin2": (4 * C, C)}[
        kind
    ]
    rows = rows_of(batch)
    weight, bias = at(constants[0], columns, inner), at(constants[1], columns, dtype=torch.float32)
    a, out = at(INPUTS[0], rows, inner), at(OUTPUTS[0], rows, columns)
    if kind in ("qkv", "lin1"):
        given = statistics(INPUTS[1], batch)
        layer = Linear(a, weight, bias, out, given, gelu=kind == "lin1", eps=CFG.layer_norm_eps)
    else:
        written = statistics(WORKSPACE if kind == "lin2" else OUTPUTS[1], batch)
        layer = Linear(a, weight, bias, out, written, at(INPUTS[1], rows, columns))
    return linear_launch(layer, PROCESSORS)


def patches(batch: int, constants: list[int]) -> Launch:
    inner, rows = 3 * CFG.patch_size**2, rows_of(batch)
    layer = Linear(
        at(INPUTS[0], rows, inner),
        at(constants[0], C, inner),
        at(constants[1], C, dtype=torch.float32),
        at(OUTPUTS[0], rows, C),
        statistics(OUTPUTS[1], batch),
        at(constants[2], SIDE * SIDE, C),
    )
    return linear_launch(layer, PROCESSORS)


def attention(batch: int, constants: list[int], index: int) -> Launch:
    qkv, out = at(INPUTS[0], batch, SIDE, SIDE, 3 * C), at(OUTPUTS[0], batch, SIDE, SIDE, C)
    if CFG.is_global(index):
        tables = [at(address, 2 * SIDE - 1, C // HEADS) for address in constants]
        return global_launch(qkv, tables[0], tables[1], out, HEADS, PROCESSORS)
    schedule = LAYERS._schedule(batch)
    # (of the schedules, one a batch size)
    place = at(constants[1 + batch], *schedule.shape, dtype=torch.int32)
    bias, table = at(constants[0], 3 * C), at(constants[1], 32, C // HEADS)
    return window_launch(qkv, bias, table, place, out, CFG.window_size, HEADS)


PARAMETERS = EncoderParameters(
    CFG, random_parameters(CFG).encoder(), torch.float16, torch.device("cpu")
)
LAYERS = _Layers(PARAMETERS, MOST, PROCESSORS)
BLOCKS = [pack_block(PARAMETERS, index) for index in range(2)]
LAUNCHES: dict[str, tuple[Callable[[], PluginLayer], Callable[[int, list[int]], Launch]]] = {
    "patches": (LAYERS.patch_embed, patches),
    "qkv": (
        lambda: LAYERS.normalised(BLOCKS[0].qkv.matrix, BLOCKS[0].qkv.bias),
        lambda batch, constants: linear(batch, constants, "qkv"),
    ),
    "lin1": (
        lambda: LAYERS.normalised(BLOCKS[0].lin1.matrix, BLOCKS[0].lin1.bias, gelu=True),
        lambda batch, constants: linear(batch, constants, "lin1"),
    ),
    "proj": (
        lambda: LAYERS.residual(BLOCKS[0].proj.matrix, BLOCKS[0].proj.bias),
        lambda batch, constants: linear(batch, constants, "proj"),
    ),
    "lin2": (
        lambda: LAYERS.residual(BLOCKS[0].lin2.matrix, BLOCKS[0].lin2.bias, is_last=True),
        lambda batch, constants: linear(batch, constants, "lin2"),
    ),
    "window": (
        lambda: LAYERS.attention(0, BLOCKS[0].rel_pos, BLOCKS[0].padding),
        lambda batch, constants: attention(batch, constants, 0),
    ),
    "global": (
        lambda: LAYERS.attention(1, BLOCKS[1].rel_pos, BLOCKS[1].padding),
        lambda batch, constants: attention(batch, constants, 1),
    ),
}  # fmt: skip


# --------------------------------------------------------------- what C++ launches


@dataclass(frozen=True)
class Harness:
    """What runs a layer: its command, its folder, and whether it is by TensorRT's headers."""

    command: tuple[Path, ...]
    folder: Path
    by_tensorrt: bool = False


def header_folders() -> list[Path]:
    """TensorRT's headers, of one version or of several: ``$SAMTRT_TENSORRT_INCLUDE``."""
    return [Path(each) for each in os.environ.get("SAMTRT_TENSORRT_INCLUDE", "").split(":") if each]


@pytest.fixture(scope="module", params=[None, *(header_folders() or ["TensorRT's headers"])])
def harness(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Harness:
    """The core by itself; or the library, driven as that version of TensorRT would."""
    folders = [f for f in plugin_library._cuda_folders() if (f / "cuda.h").is_file()]
    if not folders:
        pytest.skip("there is no cuda.h here")
    if isinstance(request.param, str):
        pytest.skip("$SAMTRT_TENSORRT_INCLUDE names no folder of TensorRT's headers")
    target = tmp_path_factory.mktemp("plugins")
    compiler = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-isystem", str(folders[0])]
    compiler += ["-Wno-deprecated-declarations"]
    stub = ["-shared", "-fPIC", str(HERE / "stub_driver.cpp"), "-o", str(target / "libcuda.so.1")]
    subprocess.run([*compiler, *stub], check=True)
    core = [path for path in plugin_library.SOURCES.glob("*.cpp") if "plugin" not in path.stem]
    program = ["-I", str(plugin_library.SOURCES), "-o", str(target / "harness")]
    if request.param is None:
        sources = [HERE / "plugin_harness.cpp", *core]
        subprocess.run([*compiler, *program, *map(str, sources), "-ldl"], check=True)
        return Harness((target / "harness",), target)
    library = target / "library.so"
    build_library(library, request.param, folders[0])
    sources = [HERE / "plugin_tensorrt_harness.cpp", *core]
    program += ["-isystem", str(request.param)]
    subprocess.run([*compiler, *program, *map(str, sources), "-ldl"], check=True)
    return Harness((target / "harness", library), target, by_tensorrt=True)


def serialised(layer: PluginLayer) -> bytes:
    """As ``Layer::serialized``."""
    constants = [each.contiguous().view(torch.uint8).numpy().tobytes() for each in layer.constants]
    fields = [layer.description, *layer.codes, *constants]
    return struct.pack("<I", len(fields)) + b"".join(
        struct.pack("<Q", len(field)) + field for field in fields
    )


def launched(
    harness: Harness, content: bytes, batch: int, sizes: Sequence[int] = ()
) -> list[list[str]]:
    """The lines that the stand-in printed, in words.

    Args:
        sizes: of the launch's arguments, in bytes.
    """
    file = harness.folder / "layer"
    file.write_bytes(content)
    places = [*map(str, INPUTS), "/", *map(str, OUTPUTS), "/", str(WORKSPACE)]
    result = subprocess.run(
        [*harness.command, file, str(batch), *places],
        capture_output=True,
        text=True,
        check=False,
        env={
            "LD_LIBRARY_PATH": str(harness.folder),
            "ARGUMENT_SIZES": " ".join(map(str, sizes)),
        },
    )
    assert (result.returncode, result.stderr) in ((0, ""), (1, ""))
    return [line.split(" ") for line in result.stdout.splitlines()]


@pytest.mark.parametrize("batch", [1, MOST])
@pytest.mark.parametrize("name", LAUNCHES)
def test_the_same_is_launched(harness: Harness, name: str, batch: int) -> None:
    make, expected = LAUNCHES[name]
    layer = make()
    nowhere = [0] * (1 + MOST + len(layer.constants))
    sizes = [len(launching._content(each)) for each in expected(batch, nowhere).arguments]
    lines = launched(harness, serialised(layer), batch, sizes)
    copies = [(int(line[1], 16), bytes.fromhex(line[2])) for line in lines if line[0] == "copy"]
    assert [content for _, content in copies] == [
        each.contiguous().view(torch.uint8).numpy().tobytes() for each in layer.constants
    ]
    assert all(address % 256 == 0 for address, _ in copies)
    assert all(
        address + len(content) <= following
        for (address, content), (following, _) in itertools.pairwise(copies)
    )
    work = expected(batch, [address for address, _ in copies])
    code = told_apart(work.program)
    assert ["function", work.program.function_name] in lines
    (numbers,) = [line[1:] for line in lines if line[0] == "launch"]
    sizes = [*work.grid, work.threads, 1, 1, work.shared_bytes]
    assert numbers == [*map(str, sizes), "6:1", code[:16].hex()]
    arguments = [line[1] for line in lines if line[0] == "argument"]
    assert arguments == [launching._content(each).hex() for each in work.arguments]
    # Nothing is left to load when a stream may be recorded into a graph.
    kinds = [line[0] for line in lines]
    ready = kinds.index("ready")
    assert {"copy", "function", "attribute"} <= set(kinds[:ready])
    assert kinds[ready + 1] == "launch"
    # What was loaded and allocated goes again.
    assert [line[0] for line in lines].count("unload") == len(layer.codes)
    assert ["free", f"{copies[0][0]:x}"] in lines


def test_statistics_that_nobody_reads_are_workspace(harness: Harness) -> None:
    layer = LAUNCHES["lin2"][0]()
    assert len(layer.outputs) == 1
    lines = launched(harness, serialised(layer), 1)
    parts = max(statistics_parts(rows_of(batch), C, PROCESSORS) for batch in range(1, MOST + 1))
    assert ["workspace", str(8 * parts * rows_of(MOST))] in lines


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-1], "cut short"),
        (lambda content: content + b"\0", "longer than it says"),
        (lambda content: content.replace(b'"linear"', b'"lineal"'), "the machine code of linear"),
        (lambda content: content[:12] + b"\x07" + content[13:], "of version 7, expected 1"),
    ],
)
def test_damaged_layers_are_refused(harness: Harness, change: Any, message: str) -> None:
    if harness.by_tensorrt and message in ("cut short", "longer than it says"):
        pytest.skip("the file is TensorRT's own")
    lines = launched(harness, change(serialised(LAUNCHES["qkv"][0]())), 1)
    assert lines[-1][0] == "error:" and message in " ".join(lines[-1])


def test_other_batches_are_refused(harness: Harness) -> None:
    lines = launched(harness, serialised(LAUNCHES["qkv"][0]()), MOST + 1)
    assert ["error:", *f"a batch of {MOST + 1}, expected 1 to {MOST}".split(" ")] in lines


def test_digests_are_sha256(harness: Harness) -> None:
    """Of one block, of two, and of more."""
    layer = LAUNCHES["qkv"][0]()
    for length in (16, 55, 56, 63, 64, 65, 119, 120, 1000):
        code = (bytes(range(256)) * 4)[:length]
        digest, ours = (hashlib.sha256(each).digest() for each in (layer.codes[0], code))
        assert layer.description.count(digest) == 1
        description = layer.description.replace(digest, ours)
        changed = PluginLayer(layer.outputs, description, (code,), layer.constants)
        lines = launched(harness, serialised(changed), 1)
        assert lines[-1][0] != "error:", lines[-1]
