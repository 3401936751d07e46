"""Builds TensorRT engines of the image encoder with and without plugins, checks and times them.

    python benchmarks/tensorrt_engines.py prepare --tensorrt DIR --include DIR
    python benchmarks/tensorrt_engines.py write   --models vit_h --plugins all --max-batch-size 4
    python benchmarks/tensorrt_engines.py build   --models vit_h --plugins all --python python3.10
    python benchmarks/tensorrt_engines.py measure --models vit_h --plugins all --output RECORD.json
    python benchmarks/tensorrt_engines.py profile --models vit_h --plugins all --output RECORD.json
    python benchmarks/tensorrt_engines.py demo    --python python3.10 --output RECORD.json

Each is a step of its own, and finds what those before it have left in the folder ``--work``.
``prepare`` compiles the plugins' library, and TensorRT's runtime for this Python where NVIDIA's
bindings are not made for it (``benchmarks/tensorrt_runtime``): TensorRT 8.6 has none for a Python
that today's torch is made for. ``build`` and ``demo`` run ``build_engine.py`` in the Python that
has TensorRT. The weights are seeded random numbers, but the demo model's.

A row is refused like those of ``benchmarks/encoder.py``; the peers of that benchmark stand beside.
``benchmarks/tensorrt_report.py`` writes the documents' tables from the record.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.encoder import ModelBenchmark, command_line, free_memory, show
from benchmarks.profile_encoder import charges, profiled, replays
from benchmarks.record import ROOT, Row, new_run
from benchmarks.timing import PROTOCOLS
from samtrt.building.accuracy import error_statistics
from samtrt.building.gate_pictures import drawn_pictures
from samtrt.building.parity import check_parity
from samtrt.building.written_network import SCRIPT, write_network
from samtrt.checkpoints import config as sizes
from samtrt.checkpoints.parameters import load_parameters, random_parameters
from samtrt.encoders import PLUGINS
from samtrt.encoders.engine import ENGINE_FILE
from samtrt.encoders.load import load_encoder
from samtrt.encoders.protocol import ImageEncoder
from samtrt.encoders.tensorrt.plugin_library import VARIABLE, build_library, header_folders
from samtrt.files import write_json

MODELS = ("vit_b", "vit_l", "vit_h")
RUNTIME = ROOT / "benchmarks/tensorrt_runtime"
DEMO = ROOT / "examples/sam/sam_models/sam_demo.pth"
# TensorRT's own attention and norms may be so many times as far from float64 as Meta's fp16.
ERROR_RATIO = 3.0
PROFILED = 5  # calls, of which the median counts


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=tuple(STEPS))
    parser.add_argument("--work", type=Path, default=Path("outputs/tensorrt_engines"))
    parser.add_argument("--models", nargs="+", default=["vit_h"], choices=MODELS)
    parser.add_argument("--plugins", nargs="+", default=["all"], choices=PLUGINS)
    parser.add_argument("--max-batch-size", type=int, default=1, metavar="N")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1])
    parser.add_argument("--peers", nargs="*", default=["eager-fp16"])
    parser.add_argument("--python", default="python3.10", help="has TensorRT; a command")
    parser.add_argument("--tensorrt", type=Path, help="folder of libnvinfer.so, without bindings")
    parser.add_argument("--include", type=Path, help="folder of NvInferRuntime.h")
    parser.add_argument("--optimization-level", type=int, metavar="0-5", help="TensorRT's own")
    parser.add_argument("--runs", type=int, default=40, help="timed calls a row and protocol")
    parser.add_argument("--seconds", type=float, default=3.0, help="see benchmarks/encoder.py")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON record to write, or to add to")
    return parser.parse_args()


# ------------------------------------------------------------------ the steps


def prepare(arguments: argparse.Namespace) -> None:
    arguments.work.mkdir(parents=True, exist_ok=True)
    build_library(_plugin_library(arguments.work), arguments.include)
    if arguments.tensorrt is None:
        return
    command = ["g++", "-std=c++17", "-O1", "-fPIC", "-shared", "-Wno-deprecated-declarations"]
    for folder in header_folders(arguments.include):
        command += ["-isystem", str(folder)]
    libraries = sorted(arguments.tensorrt.glob("libnvinfer.so*"))
    if not libraries:
        sys.exit(f"error: no libnvinfer.so in {arguments.tensorrt}")
    command += [str(RUNTIME / "runtime.cpp"), "-L", str(arguments.tensorrt)]
    command += [f"-l:{libraries[0].name}", f"-Wl,-rpath,{arguments.tensorrt.resolve()}"]
    subprocess.run([*command, "-o", str(_runtime(arguments.work))], check=True)


def write(arguments: argparse.Namespace) -> None:
    for model in arguments.models:
        parameters = random_parameters(getattr(sizes, model)(), arguments.seed)
        for plugins in arguments.plugins:
            start = time.perf_counter()
            folder = arguments.work / f"{model}-{plugins}"
            write_network(parameters, folder, "fp16", "plain", plugins, arguments.max_batch_size)
            print(f"{folder}: written in {time.perf_counter() - start:.1f} s", flush=True)


def build(arguments: argparse.Namespace) -> None:
    for model in arguments.models:
        for plugins in arguments.plugins:
            _build(arguments, arguments.work / f"{model}-{plugins}", arguments.max_batch_size)


def measure(arguments: argparse.Namespace) -> None:
    record, run = _record(arguments)
    for model in arguments.models:
        benchmark = ModelBenchmark(model, getattr(sizes, model)(), _settings(arguments), set())
        for row in _rows(arguments, model, benchmark):
            record["rows"].append(row | {"run": run["id"]})
            show(row)
            _keep(arguments, record)
        del benchmark
        free_memory()


def profile(arguments: argparse.Namespace) -> None:
    """Of each engine the layers and kernels that take longest; in the record, all."""
    batch = arguments.max_batch_size
    engines = [folder for _, _, folder in _engines(arguments, arguments.models, [batch])]
    if not engines:
        sys.exit("error: no engine to profile; `build` makes them")
    record, run = _record(arguments)
    for folder in engines:
        encoder = load_encoder(folder)
        x = torch.randn(batch, 3, encoder.img_size, encoder.img_size, device=encoder.device)
        layers = _profile(encoder, x)
        print(f"{folder.name}: {len(layers)} layers, {sum(layers.values()):.2f} ms in sum")
        for name, milliseconds in layers.most_common(30):
            print(f"  {milliseconds:8.3f} ms  {name[:150]}")
        entry = {"engine": folder.name, "run": run["id"], "layers": dict(layers.most_common())}
        entry["kernels"] = _kernels(encoder, x)
        for kernel in entry["kernels"][:20]:
            print(f"  {kernel['ms']:8.3f} ms  {kernel['launches']:4d} × {kernel['kernel'][:140]}")
        record.setdefault("profiles", []).append(entry)
        _keep(arguments, record)


def demo(arguments: argparse.Namespace) -> None:
    """The demo model from its checkpoint to masks, through TensorRT; the gate's answer first."""
    record, run = _record(arguments)
    params = arguments.work / "demo"
    samtrt = [sys.executable, "-m", "samtrt"]
    if not params.exists():
        _run(*samtrt, "convert", DEMO, "--output-dir", params)
    parameters = load_parameters(params)
    for plugins in arguments.plugins:
        network = arguments.work / f"demo-{plugins}"
        write_network(parameters, network, "fp16", "plain", plugins, arguments.max_batch_size)
        engine = _build(arguments, network, arguments.max_batch_size)
        encoder = load_encoder(engine, parameters_sha256=parameters.sha256)
        batch = arguments.max_batch_size
        parity = check_parity(encoder, parameters, drawn_pictures(), "fp16", batch)
        print(f"{engine}: {parity}", flush=True)
        entry: dict[str, Any] = {
            "plugins": plugins,
            "run": run["id"],
            "sidecar": json.loads((engine / "encoder.json").read_text()),
            "parity": asdict(parity),
        }
        record.setdefault("demo", []).append(entry)
        _keep(arguments, record)
        if not (params / "engine").exists():
            # What a build's gate compares with is this engine's own code: no gate for it.
            built = ("--backend", "cpu", "--precision", "fp32", "--skip-parity-gate")
            _run(*samtrt, "build", "--params", params, *built)
        scores = arguments.work / f"demo-{plugins}.json"
        given = ("--params", params, "--engine", engine, "--against", params / "engine")
        _run(*samtrt, "evaluate", *given, "--scenes", "50", "--json", scores)
        entry["evaluation"] = json.loads(scores.read_text())
        _keep(arguments, record)
        picture = ROOT / "examples/sam/images/shapes.jpg"
        mask = arguments.work / f"demo-{plugins}.png"
        _run(
            *samtrt, "run", "--params", params, "--engine", engine, "--image", picture,
            "--point", "400,300", "--output", mask,
        )  # fmt: skip


STEPS = {
    "prepare": prepare,
    "write": write,
    "build": build,
    "measure": measure,
    "profile": profile,
    "demo": demo,
}


# ------------------------------------------------------------------ what they do


def _build(arguments: argparse.Namespace, network: Path, batch: int) -> Path:
    engine = _engine(network, batch)
    if not (network / SCRIPT).exists():
        sys.exit(f"error: no network in {network}; `write` makes it")
    command = [*shlex.split(arguments.python), str(network / SCRIPT), "--output-dir", str(engine)]
    command += ["--max-batch-size", str(batch), "--no-library-tactics"]
    if arguments.optimization_level is not None:
        command += ["--optimization-level", str(arguments.optimization_level)]
    if not network.name.endswith("-none"):
        command += ["--plugin-library", str(_plugin_library(arguments.work))]
    _run(*command)
    return engine


def _rows(arguments: argparse.Namespace, model: str, benchmark: ModelBenchmark) -> Iterator[Row]:
    engines = list(_engines(arguments, [model], arguments.batch_sizes))
    for name, batch, folder in engines:
        free_memory()
        encoder = load_encoder(folder)
        row = benchmark.row(name, "fp16", batch, encoder, ERROR_RATIO)
        row["sidecar"] = json.loads((folder / "encoder.json").read_text())
        output = encoder(benchmark.pictures[:batch])
        row["statistics"] = asdict(error_statistics(output, benchmark.references[:batch]))
        yield row
        del encoder
    yield from benchmark.ours("fp16")
    for peer in arguments.peers:
        yield from benchmark.peer(peer)
    for name, batch, folder in engines:  # last: a recording that fails may leave CUDA unusable
        free_memory()
        yield _captured(benchmark, f"{name}-graph", batch, load_encoder(folder))


def _engines(
    arguments: argparse.Namespace, models: Iterable[str], batch_sizes: Iterable[int]
) -> Iterator[tuple[str, int, Path]]:
    """Name, batch size and folder of those that were built; of each other a line."""
    for model, plugins, batch in product(models, arguments.plugins, batch_sizes):
        folder = _engine(arguments.work / f"{model}-{plugins}", batch)
        if (folder / ENGINE_FILE).exists():
            yield f"tensorrt-{plugins}", batch, folder
        else:
            print(f"{folder.name}: not built, left out", flush=True)


def _captured(benchmark: ModelBenchmark, name: str, batch: int, encoder: ImageEncoder) -> Row:
    """The engine recorded into a CUDA graph."""
    x = benchmark.pictures[:batch].clone()
    encoder(x)
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = encoder(x)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return benchmark.head(name, "fp16", batch) | {"refused": reason[:300]}

    def call(pictures: torch.Tensor) -> torch.Tensor:
        x.copy_(pictures)
        graph.replay()
        return y

    return benchmark.row(name, "fp16", batch, call, ERROR_RATIO)


def _profile(encoder: Any, x: torch.Tensor) -> Counter[str]:
    """Milliseconds by layer, the median of some calls."""
    seen: dict[str, list[float]] = {}
    encoder(x)
    encoder._context.report_layers(lambda name, ms: seen.setdefault(name, []).append(ms))
    for _ in range(PROFILED):
        encoder(x)
        torch.cuda.synchronize()
    return Counter({name: sorted(times)[len(times) // 2] for name, times in seen.items()})


def _kernels(encoder: ImageEncoder, x: torch.Tensor) -> list[dict[str, Any]]:
    """Of the median call the kernels, as torch's profiler sees them, the longest first."""
    calls = sorted(replays(profiled(encoder, x)), key=lambda launches: sum(charges(launches)))
    launches = calls[len(calls) // 2]
    times: dict[str, list[float]] = {}
    for launch, microseconds in zip(launches, charges(launches), strict=True):
        times.setdefault(launch.kernel, []).append(microseconds / 1e3)
    found: list[dict[str, Any]] = [
        {"kernel": name, "launches": len(each), "ms": round(sum(each), 4)}
        for name, each in times.items()
    ]
    return sorted(found, key=lambda kernel: -kernel["ms"])


def _settings(arguments: argparse.Namespace) -> argparse.Namespace:
    """Those of ``benchmarks/encoder.py``."""
    return argparse.Namespace(
        **vars(arguments) | {"precisions": ["fp16"], "no_startup": True, "append": False}
    )


def _record(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    command = command_line(sys.argv[1:]).replace("encoder.py", Path(__file__).name)
    run = new_run(command) | {"tensorrt": _version()}
    if arguments.output is not None and arguments.output.exists():
        record = json.loads(arguments.output.read_text())
        record["runs"].append(run)
        return record, run
    note = f"seeded random weights (seed {arguments.seed}), rel_pos and pos_embed too"
    return {"note": note, "protocols": PROTOCOLS, "runs": [run], "rows": []}, run


def _keep(arguments: argparse.Namespace, record: dict[str, Any]) -> None:
    if arguments.output is not None:
        write_json(arguments.output, record)


def _version() -> str:
    import tensorrt

    return str(tensorrt.__version__)


def _engine(network: Path, batch: int) -> Path:
    return network.with_name(f"{network.name}-batch{batch}")


def _plugin_library(work: Path) -> Path:
    return work / "libsamtrt_plugins.so"


def _runtime(work: Path) -> Path:
    return work / "libruntime.so"


def _run(*command: str | Path) -> None:
    print("$", shlex.join(map(str, command)), flush=True)
    result = subprocess.run(list(map(str, command)), check=False)
    if result.returncode != 0:
        sys.exit(f"error: that command ended with {result.returncode}")


def _use(work: Path) -> None:
    """Has this process, and those that it starts, find the two libraries."""
    os.environ[VARIABLE] = str(_plugin_library(work).resolve())
    if _runtime(work).exists():
        os.environ["SAMTRT_TENSORRT_RUNTIME"] = str(_runtime(work).resolve())
        paths = [str(RUNTIME), str(ROOT), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        sys.path.insert(0, str(RUNTIME))


def main() -> None:
    arguments = parse_arguments()
    _use(arguments.work)
    STEPS[arguments.step](arguments)


if __name__ == "__main__":
    main()
