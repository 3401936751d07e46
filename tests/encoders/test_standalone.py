"""A written network, and the script that builds it where there is neither torch nor samtrt."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trt_reader
from documents import block_for
from oracle import meta_encoder, relative_l2, tiny_config
from scripts import call_script, load_script

from samtrt.building.written_network import SCRIPT, write_network
from samtrt.checkpoints.parameters import random_parameters, save_parameters
from samtrt.encoders.engine import NOT_CHECKED, read_engine_info
from samtrt.encoders.tensorrt import standalone
from samtrt.encoders.tensorrt.builder import (
    DTYPES,
    INPUT,
    OUTPUT,
    add_recording,
    raw_weights,
    record_network,
)
from samtrt.encoders.tensorrt.library import shared_log
from samtrt.errors import CheckpointError, EngineError

pytestmark = pytest.mark.usefixtures("one_thread")

CFG = tiny_config(depth=2)  # one window block with padding, and one global block
PARAMETERS = random_parameters(CFG)


def picture() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 3, CFG.img_size, CFG.img_size, generator=generator)


def evaluated(trt: Any, network: standalone.Network) -> torch.Tensor:
    return trt_reader.evaluate(trt, network.definition, {INPUT: picture()})[OUTPUT]


@torch.inference_mode()
def bar(precision: str) -> tuple[torch.Tensor, float]:
    """Meta's embedding in fp32, and how far ours may be from it."""
    meta, x = meta_encoder(CFG), picture()
    reference = meta(x)
    if precision == "fp32":
        return reference, 1e-5
    dtype = DTYPES[precision]
    return reference, 2 * relative_l2(meta.to(dtype)(x.to(dtype)), reference)


# --------------------------------------------------------------- the folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("written")
    write_network(PARAMETERS, target, "fp16", "plain")
    return target


@pytest.mark.parametrize("attention", ["fused", "plain"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_what_was_written_is_metas_encoder(trt, tmp_path, precision, attention):
    write_network(PARAMETERS, tmp_path, precision, attention)
    description, weights = standalone.read_network(tmp_path)
    network = standalone.add_network(trt, trt.Builder(shared_log(trt)), description, weights)
    reference, allowed = bar(precision)
    assert relative_l2(evaluated(trt, network), reference) <= allowed


def test_the_weights_are_under_metas_names(folder):
    _, weights = standalone.read_network(folder)
    tensors = PARAMETERS.encoder()
    made = ("constant", "places")  # numbers, and where a key stands
    scalars = {name for name in weights if name.rpartition(".")[2].rstrip("_") in made}
    assert set(tensors) == set(weights) - scalars
    stored = weights["blocks.0.mlp.lin1.weight"]
    assert stored.type == "float16"
    assert stored.content.tobytes() == tensors["blocks.0.mlp.lin1.weight"].astype("f2").tobytes()
    assert weights["blocks.0.norm1.weight"].type == "float32"


WITHOUT_TORCH = """
import runpy, sys
for name in ("torch", "samtrt", "pydantic", "safetensors"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_script(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_TORCH, str(folder / SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_script_builds_without_torch(trt, folder, tmp_path):
    if trt.__name__ != "tensorrt_rtx":
        pytest.skip("TensorRT needs a GPU to build")
    result = run_script(folder, "--output-dir", tmp_path / "engine", "--max-batch-size", "3")
    assert result.returncode == 0, result.stderr
    assert f"{trt.__name__} {trt.__version__} lacks nothing that is used here" in result.stdout
    info = read_engine_info(tmp_path / "engine")
    assert (info.library, info.library_version) == (trt.__name__, trt.__version__)
    assert (info.precision, info.attention, info.max_batch_size) == ("fp16", "plain", 3)
    assert info.parameters_sha256 == PARAMETERS.sha256
    assert info.parity.status == NOT_CHECKED
    engine = (tmp_path / "engine" / "encoder.engine").read_bytes()
    runtime = trt.Runtime(shared_log(trt))
    assert runtime is None or len(engine) > 1000


def find(description: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(layer for layer in description["layers"] if layer["kind"] == kind)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=2), "has version 2, expected 1"),
        (lambda d: d.pop("version"), "cannot be read"),
        (lambda d: d["layers"][0].update(kind="os.system"), "kind os.system is not known"),
        (lambda d: d.update(weights_sha256="0" * 64), "not the file that the network was written"),
        (lambda d: find(d, "constant").update(shape=[7]), "cannot be made: RuntimeError("),
        (lambda d: d["layers"][5].pop("inputs"), "cannot be made: KeyError('inputs')"),
        (lambda d: find(d, "permute").update(shape=[-1, 2, 3]), "the network says (-1, 2, 3)"),
    ],
)
def test_a_damaged_network_is_refused_in_one_line(trt, folder, tmp_path, change, message):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    file = tmp_path / standalone.NETWORK_FILE
    description = json.loads(file.read_text())
    change(description)
    file.write_text(json.dumps(description))
    result = run_script(tmp_path, "--output-dir", tmp_path / "engine")
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "engine").exists()


def test_the_script_runs_on_python_3_8_with_numpy_alone():
    source = Path(standalone.__file__).read_text()
    tree = ast.parse(source, feature_version=(3, 8))
    modules = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert modules - set(sys.stdlib_module_names) - {"__future__"} == {"numpy"}


def test_other_parameters_write_nothing(tmp_path):
    with pytest.raises(EngineError, match="unknown precision int8"):
        write_network(PARAMETERS, tmp_path / "network", "int8")
    broken = random_parameters(CFG)
    del broken.tensors["image_encoder.neck.0.weight"]
    with pytest.raises(CheckpointError, match=r"missing neck\.0\.weight"):
        write_network(broken, tmp_path / "network")
    assert not (tmp_path / "network").exists()


# --------------------------------------------------------------- TensorRT 8.6


class Layer86:
    """A layer that is told its type, as 8.6's are; the real one beneath is strongly typed."""

    OWN = ("_layer", "precision", "compute_precision", "told")

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self.precision = self.compute_precision = self.told = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        target = self if name in self.OWN else self._layer
        object.__setattr__(target, name, value) if target is self else setattr(target, name, value)

    def set_output_type(self, index: int, data_type: Any) -> None:
        assert index == 0
        self.told = data_type


class Definition86:
    """A strongly typed network that offers what 8.6 offers, and remembers the layers."""

    MISSING = ("add_attention", "add_attention_v2", "add_normalization_v2")

    def __init__(self, trt: Any, definition: Any) -> None:
        self._trt, self.definition = trt, definition
        self.layers: list[Layer86] = []
        self.memory: Any = None  # of the weights

    def __getattr__(self, name: str) -> Any:
        if name in self.MISSING:
            raise AttributeError(name)
        method = getattr(self.definition, name)
        if not name.startswith("add_") or name == "add_input":
            return method

        def add(*arguments: Any) -> Layer86:
            self.layers.append(Layer86(method(*arguments)))
            return self.layers[-1]

        return add


class TensorRT86:
    """The installed library with what 8.6 does not have taken away."""

    __name__ = "tensorrt"
    __version__ = "8.6.0"

    def __init__(self, trt: Any) -> None:
        self._trt = trt
        self.NetworkDefinitionCreationFlag = SimpleNamespace(EXPLICIT_BATCH=0)
        self.INetworkDefinition = SimpleNamespace()
        self.DataType = SimpleNamespace(
            FLOAT=trt.DataType.FLOAT, HALF=trt.DataType.HALF, INT32=trt.DataType.INT32
        )
        self.ActivationType = SimpleNamespace()
        # Of an array, or empty of a type; later versions take a type, an address and a length too.
        self.Weights = lambda content: trt.Weights(content)
        self.made: list[Definition86] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trt, name)

    def create_network(self, flags: int) -> Definition86:
        assert flags == 1  # EXPLICIT_BATCH
        flag = 1 << int(self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        builder = self._trt.Builder(shared_log(self._trt))
        self.made.append(Definition86(self._trt, builder.create_network(flag)))
        return self.made[-1]


def network_86(trt: Any, precision: str, attention: str = "plain") -> Definition86:
    library = TensorRT86(trt)
    recording = record_network(CFG, PARAMETERS.encoder(), precision, attention)
    made = standalone.add_network(library, library, recording.description(), raw_weights(recording))
    library.made[0].memory = made
    return library.made[0]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_form_for_8_6_is_metas_encoder(trt, precision):
    network = network_86(trt, precision)  # which keeps the weights
    reference, allowed = bar(precision)
    output = trt_reader.evaluate(trt, network.definition, {INPUT: picture()})[OUTPUT]
    assert relative_l2(output, reference) <= allowed


def test_8_6_is_told_the_type_of_every_layer_that_computes(trt):
    """What it is told is what the strongly typed network beneath infers from the inputs."""
    floats = {trt.DataType.FLOAT, trt.DataType.HALF}
    told = 0
    for layer in network_86(trt, "fp16").layers:
        inferred = layer.get_output(0).dtype
        if inferred not in floats or layer.type == trt.LayerType.CONSTANT:
            continue
        assert layer.told == inferred, layer.name
        if layer.type != trt.LayerType.CAST:
            assert layer.precision == inferred, layer.name
        if layer.type == trt.LayerType.NORMALIZATION:
            assert layer.compute_precision == trt.DataType.FLOAT
        told += 1
    assert told > 50


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_convolutions_add_up_in_float32(trt, precision):
    """As TensorRT infers it: fp16 and bf16 are exact in their inputs, and so are the weights."""
    recording = record_network(CFG, PARAMETERS.encoder(), precision, "plain")
    network = standalone.add_network(
        trt, trt.Builder(shared_log(trt)), recording.description(), raw_weights(recording)
    ).definition
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    found = [layer for layer in layers if layer.type == trt.LayerType.CONVOLUTION]
    assert [layer.name for layer in found] == [
        "patch_embed.proj/conv2d",
        "neck.0/conv2d",
        "neck.2/conv2d",
    ]
    for layer in found:
        assert layer.get_input(0).dtype == layer.get_output(0).dtype == trt.DataType.FLOAT
    stored = recording.weights["neck.2.weight"]
    given = torch.from_numpy(PARAMETERS.encoder()["neck.2.weight"])
    assert torch.equal(stored, given.to(DTYPES[precision]).float())


@pytest.mark.parametrize(
    ("precision", "attention", "message"),
    [
        ("bf16", "plain", r"tensorrt 8\.6\.0 has no bfloat16; choose another precision"),
        ("fp16", "fused", r"8\.6\.0 has no fused attention layer; .*--attention plain"),
    ],
)
def test_what_8_6_lacks_is_refused(trt, precision, attention, message):
    with pytest.raises(standalone.NetworkError, match=message):
        network_86(trt, precision, attention)
    library = TensorRT86(trt)
    recording = record_network(CFG, PARAMETERS.encoder(), precision, attention)
    with pytest.raises(EngineError, match=message):
        add_recording(library, library, recording)
    assert standalone.lacks(library) == [
        "strongly typed networks",
        "bf16",
        "a fused attention layer",
        "a GELU layer",
    ]


def test_8_6_is_configured_to_obey():
    flags: list[str] = []
    config = SimpleNamespace(
        clear_flag=lambda flag: flags.append(f"not {flag}"),
        set_flag=flags.append,
        set_memory_pool_limit=lambda pool, size: None,
        add_optimization_profile=lambda profile: None,
    )
    shapes = []
    profile = SimpleNamespace(set_shape=lambda *given: shapes.append(given))
    builder = SimpleNamespace(
        create_builder_config=lambda: config, create_optimization_profile=lambda: profile
    )
    library = SimpleNamespace(
        NetworkDefinitionCreationFlag=SimpleNamespace(EXPLICIT_BATCH=0),
        BuilderFlag=SimpleNamespace(FP16="fp16", TF32="tf32", OBEY_PRECISION_CONSTRAINTS="obey"),
        MemoryPoolType=SimpleNamespace(WORKSPACE="workspace"),
    )
    description = record_network(CFG, PARAMETERS.encoder(), "fp16", "plain").description()
    standalone.configure(library, builder, description, "fp16", 4)
    assert flags == ["obey", "fp16"]
    assert shapes == [(INPUT, (1, 3, 128, 128), (4, 3, 128, 128), (4, 3, 128, 128))]
    flags.clear()
    standalone.configure(library, builder, description, "fp32", 4)
    assert flags == ["not tf32", "obey"]


# --------------------------------------------------------------- as a user calls it


SAMTRT = "import sys; from samtrt.cli.commands import main; sys.exit(main())"


def test_the_documents_commands(trt, tmp_path, monkeypatch):
    if trt.__name__ != "tensorrt_rtx":
        pytest.skip("TensorRT needs a GPU to build")
    (write, build) = (line.split() for line in block_for(__file__, "docs/tensorrt.md"))
    parameters = tmp_path / "parameters"
    save_parameters(PARAMETERS, parameters)
    monkeypatch.chdir(tmp_path)
    assert write[:2] == ["samtrt", "build"]
    result = subprocess.run(
        [sys.executable, "-c", SAMTRT, "build", str(parameters), *write[3:]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].endswith("network/build_engine.py --output-dir ENGINE")
    assert build[:2] == ["python", f"network/{SCRIPT}"]
    result = run_script(tmp_path / "network", *build[2:])
    assert result.returncode == 0, result.stderr
    assert read_engine_info(tmp_path / "engine").max_batch_size == 4


@pytest.mark.parametrize(
    "others", [["--backend", "cpu"], ["--max-batch-size", "2"], ["--output-dir", "x"]]
)
def test_options_that_say_nothing_of_a_written_network_are_refused(tmp_path, others):
    status, _, error = call_script(
        load_script("build"), "--write-network", tmp_path / "network", *others
    )
    assert status != 0
    assert f"{others[0]}" in error and "with --write-network" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "network").exists()
