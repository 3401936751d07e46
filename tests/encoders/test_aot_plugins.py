"""The network with ahead-of-time plugins: what is launched is Meta's encoder; what TensorRT's own
Python code would be told of it is what is launched for torch.

The latter needs NVIDIA's code: ``SAMTRT_TENSORRT_BINDINGS=FOLDER[:FOLDER…]``, each the folder
``tensorrt_bindings`` of an unpacked wheel tensorrt-cu13-bindings.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from oracle import meta_encoder, relative_l2
from plugin_replay import evaluate, not_compiled
from triton_kernels import ON_GPU  # before the kernels: it chooses Triton's interpreter

from samtrt.building.build import BuildOptions, build_encoder
from samtrt.checkpoints.config import EncoderConfig
from samtrt.checkpoints.parameters import random_parameters, save_parameters
from samtrt.encoders.cuda.portable import PORTABLE
from samtrt.encoders.tensorrt import aot_network, builder, standalone
from samtrt.encoders.tensorrt.builder import DTYPES, INPUT, OUTPUT, record_network
from samtrt.errors import EngineError
from samtrt.kernels.triton.global_attention import global_launch, relative_launch
from samtrt.kernels.triton.launch import Launch
from samtrt.kernels.triton.window_attention import window_launch

pytestmark = pytest.mark.usefixtures("one_thread")

HERE = Path(__file__).resolve().parent
# Windows of 7 on 16 × 16 tokens, which need padding; heads of 80, which take two tiles.
CFG = EncoderConfig(
    embed_dim=160, depth=2, num_heads=2, global_attn_indexes=(1,), window_size=7, img_size=256
)
PARAMETERS = random_parameters(CFG)


# Triton's interpreter has no products in bf16.
BFLOAT16 = pytest.param(
    "bf16", marks=[pytest.mark.gpu, pytest.mark.skipif(not ON_GPU, reason="no NVIDIA GPU")]
)


@pytest.mark.parametrize("precision", ["fp16", BFLOAT16])
@torch.inference_mode()
def test_the_network_is_metas_encoder(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aot_network, "compiled", not_compiled)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 3, CFG.img_size, CFG.img_size, generator=generator)
    meta = meta_encoder(CFG)
    reference = meta(x)
    dtype = DTYPES[precision]
    allowed = 1.5 * relative_l2(meta.to(dtype)(x.to(dtype)), reference)
    recording = record_network(CFG, PARAMETERS.encoder(), precision, "plain", "attention-aot")
    plugins = [layer.settings["plugin"] for layer in recording.layers if layer.kind == "aot_plugin"]
    assert plugins == ["window_attention", "relative_positions", "global_attention"]
    assert all(layer.kind not in ("softmax", "pad", "attention") for layer in recording.layers)
    assert relative_l2(evaluate(recording, {INPUT: x})[OUTPUT], reference) <= allowed


# --------------------------------------------------------------- as NVIDIA's code tells TensorRT


def bindings_folders() -> list[Path]:
    named = os.environ.get("SAMTRT_TENSORRT_BINDINGS", "")
    return [Path(each) for each in named.split(":") if each]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A written one, with PTX; made in a process whose Triton compiles."""
    folder = tmp_path_factory.mktemp("aot")
    save_parameters(PARAMETERS, folder / "parameters")
    program = "import sys; from samtrt.cli.commands import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "build", folder / "parameters", "--precision", "fp16"]
    command += ["--plugins", "attention-aot", "--write-network", folder / "network"]
    run(command)
    return folder / "network"


def run(command: list[Any]) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(HERE.parents[1])
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def launches(batch: int) -> list[Launch]:
    side, heads, head_dim = CFG.grid_size, CFG.num_heads, CFG.head_dim
    return [
        window_launch(batch, side, side, CFG.window_size, heads, head_dim, PORTABLE.window),
        relative_launch(batch, side, side, heads, head_dim),
        global_launch(batch, side, side, heads, head_dim, PORTABLE.globals),
    ]


@pytest.mark.parametrize("bindings", bindings_folders() or [None], ids=str)
def test_tensorrt_is_told_what_is_launched_for_torch(
    trt: Any, network: Path, bindings: Path | None
) -> None:
    if bindings is None:
        pytest.skip("$SAMTRT_TENSORRT_BINDINGS names no folder of TensorRT's bindings")
    if trt.__name__ != "tensorrt_rtx":
        pytest.skip("the layers around are TensorRT-RTX's")
    batches = (1, 3)
    lines = run([sys.executable, HERE / "aot_protocol.py", bindings, network, *map(str, batches)])
    told = [json.loads(line) for line in lines.splitlines() if line.startswith("{")]
    description, weights = standalone.read_network(network)
    layers = [layer for layer in description["layers"] if layer["kind"] == "aot_plugin"]
    assert len(told) == len(layers) == 3
    for batch in batches:
        for layer, launch, each in zip(layers, launches(batch), told, strict=True):
            found = each["told"][str(batch)]
            assert found["grid"] == list(launch.grid)
            assert found["block"] == [32 * launch.num_warps, 1, 1]
            assert found["sizes"] == list(launch.sizes.values())
            assert found["shared_bytes"] == layer["launch"]["shared_bytes"]
            ptx = weights[layer["ptx"]].content.tobytes()
            assert found["ptx_sha256"] == hashlib.sha256(ptx).hexdigest()
            assert f".entry {found['function']}(".encode() in ptx
            expected = [layer, *layer.get("further", [])]
            assert found["outputs"] == [
                [standalone.TYPES[output["type"]], [batch, *output["shape"][1:]]]
                for output in expected
            ]


def test_the_engine_of_a_written_network_needs_no_library(network: Path) -> None:
    description, _ = standalone.read_network(network)
    assert not standalone.has_plugins(description)
    assert standalone._max_batch_size(5, description) == 5
    assert description["engine"]["plugins"] == "attention-aot"
    assert description["engine"]["plugins_sha256"] is None


# --------------------------------------------------------------- what is refused


def test_what_has_no_plugins_is_refused() -> None:
    def record(precision: str = "fp16", **changes: Any) -> None:
        config = EncoderConfig(**{**CFG.to_json(), **changes})
        parameters = random_parameters(config).encoder()
        record_network(config, parameters, precision, "plain", "attention-aot")

    with pytest.raises(EngineError, match=r"compute in fp16 or bf16, and .* in float32; choose"):
        record("fp32")
    with pytest.raises(EngineError, match="no kernels for the sizes of this encoder; choose"):
        record(num_heads=4)  # heads of 40


def older(version: str, name: str = "tensorrt", **has: Any) -> Any:
    definition = SimpleNamespace(add_plugin_v2=None, **has)
    return SimpleNamespace(__name__=name, __version__=version, INetworkDefinition=definition)


@pytest.mark.parametrize(
    ("library", "message"),
    [
        (older("8.6.0"), r"tensorrt 8\.6\.0 has no ahead-of-time Python plugins; expected"),
        (older("10.3.0", add_plugin=None), r"10\.3\.0 has no ahead-of-time .* 10\.14 or newer"),
        (older("1.7.1", "tensorrt_rtx"), r"tensorrt_rtx 1\.7\.1 has no ahead-of-time"),
    ],
)
def test_a_tensorrt_without_them_is_refused(
    library: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "import_tensorrt", lambda: library)
    monkeypatch.setattr(builder, "shared_log", lambda trt: SimpleNamespace(errors=[]))
    with pytest.raises(EngineError, match=message) as error:
        builder.build_engine(CFG, PARAMETERS.encoder(), plugins="attention-aot")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("backend", ["cpu", "tensorrt"])
def test_another_backend_or_gpu_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setattr("samtrt.building.build.compute_capability", lambda: "7.5")
    match = {
        "cpu": "--plugins are for --backend tensorrt; the cpu backend",
        "tensorrt": r"compute capability 8\.0 and newer, and this GPU has 7\.5; leave --plugins",
    }[backend]
    options = BuildOptions(backend=backend, plugins="attention-aot")
    with pytest.raises(EngineError, match=match):
        build_encoder(PARAMETERS, tmp_path, options=options)
    assert not list(tmp_path.iterdir())


def test_an_old_gpu_is_refused_where_the_network_is_built(
    network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(capability: str, then: Callable[[], None]) -> None:
        monkeypatch.setattr(standalone, "_compute_capability", lambda: capability)
        then()

    monkeypatch.setattr(standalone, "aot_plugins", lambda trt: None)
    check("12.0", lambda: standalone._check_aot_plugins(None))
    with pytest.raises(standalone.NetworkError, match=r"8\.0 and newer, and this GPU has 7\.5"):
        check("7.5", lambda: standalone._check_aot_plugins(None))
