"""The encoder's benchmark without a GPU: what it checks, refuses, keeps and adds to a record."""

import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import triton_kernels  # before the kernels: it chooses Triton's interpreter
from oracle import tiny_config

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import encoder, record, timing  # noqa: E402
from benchmarks.startup import cache_variables  # noqa: E402
from samtrt.checkpoints.config import EncoderConfig  # noqa: E402
from samtrt.checkpoints.parameters import random_parameters  # noqa: E402
from samtrt.encoders.cuda import FusedImageEncoder  # noqa: E402
from samtrt.encoders.cuda.fp8_reference import Fp8Reference  # noqa: E402
from samtrt.errors import InputError  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = tiny_config(depth=1, global_attn_indexes=(), img_size=16, patch_size=4)


class InFloat32:
    """Stands in for our encoder, which is slow in the interpreter: Meta's."""

    def __init__(self, config: EncoderConfig, tensors: Any, *others: Any, **options: Any) -> None:
        self.encoder = encoder.meta_image_encoder(config)
        self.encoder.load_state_dict(tensors)

    @torch.no_grad()
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.encoder(x)
        return output


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The clock replaced by a count of its calls, our encoder by one that is quick on a CPU."""
    if triton_kernels.ON_GPU:
        pytest.skip("runs in Triton's interpreter")
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    for name in ("memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: 0)
    timed: list[int] = []

    def measure(calls: list[timing.Call], runs: int, seconds: float) -> dict[str, Any]:
        timed.append(len(calls))
        entry = {"p50_ms": 2.0, "p90_ms": 2.5, "best_ms": 1.5, "runs": runs}
        return {"single": entry, "sustained": {**entry, "sm_clock_mhz": None, "power_w": None}}

    monkeypatch.setattr(encoder, "measure", measure)
    monkeypatch.setattr(encoder, "FusedImageEncoder", InFloat32)
    monkeypatch.setattr(record, "source_sha256", lambda: "digest")
    return timed


def bench(arguments: Any, skipped: set[tuple[Any, ...]] | None = None) -> encoder.ModelBenchmark:
    return encoder.ModelBenchmark("vit_h", CONFIG, arguments, skipped or set(), "cpu")


def run(path: Path, *options: str, digest: str = "") -> tuple[dict[str, Any], list[record.Row]]:
    """The script's main part on the CPU: the record that it wrote, and what it refused."""
    arguments = encoder.parse_arguments([*options, "--no-startup", "--output", str(path)])
    entry = record.new_run(encoder.command_line(list(options)))
    entry["source_sha256"] += digest
    made = encoder.start_record(arguments, entry)
    rows = bench(arguments, record.measured(made)).rows()
    refused = encoder.collect(made, entry, rows, path)
    return record.read_record(path), refused


SMALL = ("--batch-sizes", "1", "2", "--peers", "eager-fp32")


@pytest.mark.usefixtures("no_gpu")
def test_rows_are_checked_and_have_both_protocols(tmp_path: Path) -> None:
    made, refused = run(tmp_path / "record.json", *SMALL)
    assert refused == []
    names = [(row["encoder"], row["batch_size"]) for row in made["rows"]]
    assert names == [("samtrt", 1), ("samtrt", 2), ("eager-fp32", 1), ("eager-fp32", 2)]
    for row in made["rows"]:
        assert set(row["timings"]) == set(made["protocols"]) == {"single", "sustained"}
        assert 0 < row["relative_l2"] < 2 * row["meta_relative_l2"] < 1e-2
        assert row["run"] == made["runs"][0]["id"]
    assert made["runs"][0]["command"] == f"python benchmarks/encoder.py {' '.join(SMALL)}"


@pytest.mark.usefixtures("no_gpu")
def test_our_own_encoder_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "FusedImageEncoder", FusedImageEncoder)
    monkeypatch.setattr(encoder, "INPUTS", 1)
    made, refused = run(tmp_path / "record.json", "--batch-sizes", "1", "--peers")
    assert refused == [] and "timings" in made["rows"][0]
    assert made["rows"][0]["relative_l2"] > 1e-4  # of fp16


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("off", [0.0, 0.05])
def test_fp8_is_held_against_a_reference_that_rounds_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off: float
) -> None:
    plans = []

    class Rounding(Fp8Reference):
        def __init__(self, config: EncoderConfig, tensors: Any, *_: Any, **options: Any) -> None:
            super().__init__(config, tensors, options["fp8"])
            plans.append(options["fp8"])

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return (1 + off) * super().__call__(x)

    monkeypatch.setattr(encoder, "FusedImageEncoder", Rounding)
    options = ("--batch-sizes", "1", "2", "--peers", "--precisions", "fp8")
    made, refused = run(tmp_path / "record.json", *options)
    assert len(made["rows"]) == 2 and len(refused) == (2 if off else 0)
    for row in made["rows"]:
        assert row["precision"] == "fp8" and ("timings" in row) == (not off)
        assert 1e-2 < row["meta_relative_l2"] < 0.2
    count = sum(t.size for t in random_parameters(CONFIG, 0).encoder().values())
    matrices = sum(packed.weight.numel() for packed in plans[0].packed.values())
    assert made["rows"][0]["weights_mb"] == (2 * count - matrices) / 1e6


def alter(monkeypatch: pytest.MonkeyPatch, change: Callable[[int, torch.Tensor], None]) -> None:
    """Our encoder with its outputs changed: by a function of the call's number and the output."""

    class Altered(InFloat32):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.numbers = itertools.count()

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            output = super().__call__(x)
            change(next(self.numbers), output)
            return output

    monkeypatch.setattr(encoder, "FusedImageEncoder", Altered)


def scaled(number: int, output: torch.Tensor) -> None:
    output *= 1.05


def last_picture_wrong(number: int, output: torch.Tensor) -> None:
    output[-1] *= 1.05


def not_a_number(number: int, output: torch.Tensor) -> None:
    if number == 3:
        output[-1, 0, 0, 0] = float("nan")


@pytest.mark.parametrize("change", [scaled, last_picture_wrong, not_a_number])
def test_a_wrong_output_is_refused_and_not_timed(
    change: Callable[[int, torch.Tensor], None],
    tmp_path: Path,
    no_gpu: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alter(monkeypatch, change)
    made, refused = run(tmp_path / "record.json", "--batch-sizes", "2", "--peers")
    assert [row["batch_size"] for row in refused] == [1, 2] and not no_gpu
    for row in made["rows"]:
        assert "relative L2" in row["refused"] and "not timed" in row["refused"]
        assert "timings" not in row


@pytest.mark.parametrize(
    ("first", "timed", "match"),
    [
        # (one call before the row's: its memory is measured)
        (1 + encoder.INPUTS, 0, "1 of 12 repeated outputs differ: not timed"),
        (1 + encoder.REPEATS * encoder.INPUTS - 1, 0, "1 of 12 repeated outputs differ: not timed"),
        (1 + encoder.REPEATS * encoder.INPUTS, 1, "1 of 6 outputs differ after the timing"),
    ],
)
def test_an_output_that_changes_by_a_bit_is_refused(
    first: int,
    timed: int,
    match: str,
    tmp_path: Path,
    no_gpu: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def change(number: int, output: torch.Tensor) -> None:
        if number == first:
            output[0, 1, 2, 3] = output[0, 1, 2, 3].nextafter(torch.tensor(9.0))

    alter(monkeypatch, change)
    made, refused = run(tmp_path / "record.json", "--batch-sizes", "1", "--peers")
    assert len(refused) == 1 and len(no_gpu) == timed
    assert made["rows"][0]["refused"] == match and "timings" not in made["rows"][0]


@pytest.mark.usefixtures("no_gpu")
def test_a_peer_that_fails_leaves_the_other_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # (None: an import of it fails)
    monkeypatch.setitem(sys.modules, "segment_anything_fast", None)
    options = ("--batch-sizes", "1", "--peers", "fast-bf16", "eager-fp32")
    made, refused = run(tmp_path / "record.json", *options)
    assert [row["encoder"] for row in refused] == ["fast-bf16"]
    assert refused[0]["refused"].startswith("ModuleNotFoundError")
    assert "timings" in made["rows"][-1] and made["rows"][-1]["encoder"] == "eager-fp32"


@pytest.mark.usefixtures("no_gpu")
def test_a_later_run_adds_what_is_missing_and_our_batch_1(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    run(path, "--batch-sizes", "1", "2", "--peers")
    made, _ = run(path, *SMALL, "--append")
    first, second = (entry["id"] for entry in made["runs"])
    assert [(row["encoder"], row["batch_size"], row["run"]) for row in made["rows"]] == [
        ("samtrt", 1, first),
        ("samtrt", 2, first),
        ("samtrt", 1, second),
        ("eager-fp32", 1, second),
        ("eager-fp32", 2, second),
    ]


@pytest.mark.usefixtures("no_gpu")
def test_other_code_or_weights_are_not_added(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    run(path, "--batch-sizes", "1", "--peers")
    before = path.read_text()
    with pytest.raises(InputError, match="another timed code") as error:
        run(path, *SMALL, "--append", digest="x")
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="seed 7"):
        run(path, *SMALL, "--append", "--seed", "7")
    assert path.read_text() == before
    for text in ("", "[]", '{"rows": []}'):
        path.write_text(text)
        with pytest.raises(InputError, match="not a"):
            run(path, *SMALL, "--append")


def test_every_difference_of_the_machine_is_named() -> None:
    entry = record.new_run("")
    other = json.loads(json.dumps(entry))
    other["environment"]["driver"] = "1.2"
    other["environment"]["packages"]["torch"] = "0.1"
    made = {"note": "", "runs": [entry], "rows": []}
    with pytest.raises(InputError, match=r"driver .*1\.2.*torch .*0\.1"):
        record.join(made, other, "")
    record.join(made, json.loads(json.dumps(entry)), "")
    assert len(made["runs"]) == 2


def test_the_digest_covers_the_timed_code_alone(tmp_path: Path) -> None:
    kernels = tmp_path / "samtrt" / "kernels" / "hopper"
    kernels.mkdir(parents=True)
    (kernels / "linear.cu").write_text("a")
    (tmp_path / "README.md").write_text("a")
    before = record.source_sha256(tmp_path)
    (tmp_path / "README.md").write_text("b")
    assert record.source_sha256(tmp_path) == before
    (kernels / "linear.cu").write_text("b")
    assert record.source_sha256(tmp_path) != before


def test_the_digest_is_of_what_stands_in_the_files_not_of_where(tmp_path: Path) -> None:
    """Moved, with the imports that follow and other words about it, code is the same code."""
    before = """\"\"\"Kernels.\"\"\"
from kernels.tiles import TILE
import torch

# How many.
def launch(x):
    \"\"\"Launches.\"\"\"
    return torch.relu(x)[:TILE]  # a tile
"""
    moved = """\"\"\"Moved.\"\"\"

import torch

from kernels.hopper.tiles import (
    TILE,
)


def launch(x):
    \"\"\"Launches x.\"\"\"
    return torch.relu(x)[:TILE]  # a tile
"""

    def digest(name: str, code: str, device_code: str = "__global__") -> str:
        root = tmp_path / f"root{len(list(tmp_path.iterdir()))}"
        for path, text in ((f"{name}.py", code), (f"{name}.cu", device_code)):
            file = root / "samtrt/kernels" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        (root / "samtrt/kernels/__init__.py").write_text('"""A folder."""')
        return record.source_sha256(root)

    first = digest("linear", before)
    assert digest("hopper/linear", moved) == first
    for changed in (
        before.replace("relu", "gelu"),
        before.replace("import TILE", "import WIDE as TILE").replace("[:TILE]", "[:WIDE]"),
        before.replace("import torch", "import numpy"),
        before.replace("(x)[", "(-x)["),
    ):
        assert digest("linear", changed) != first
    assert digest("linear", before, "__device__") != first


class Event:
    """A CUDA event of a GPU on which every call is done at once."""

    def __init__(self, enable_timing: bool) -> None:
        self.moment = 0.0

    def record(self) -> None:
        self.moment = time.perf_counter()

    def synchronize(self) -> None:
        assert self.moment

    def elapsed_time(self, end: "Event") -> float:
        return 1e3 * (end.moment - self.moment)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
    """Which of two calls of 2 ms were made, and when."""
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
    return []


def two_calls(called: list[tuple[int, float]]) -> list[timing.Call]:
    def call(index: int) -> None:
        called.append((index, time.perf_counter()))
        time.sleep(0.002)

    return [lambda: call(0), lambda: call(1)]


def test_single_calls_rest_in_between(called: list[tuple[int, float]]) -> None:
    times = timing.single_milliseconds(two_calls(called), runs=5, warmup=2)
    assert len(times) == 5 and min(times) >= 2
    assert [index for index, _ in called] == [0, 1, 0, 1, 0, 1, 0]
    moments = [moment for _, moment in called[1:]]
    assert all(b - a >= timing.PAUSE for a, b in itertools.pairwise(moments))


def test_sustained_calls_follow_seconds_of_the_same(called: list[tuple[int, float]]) -> None:
    times, since = timing.sustained_milliseconds(two_calls(called), runs=20, heat=0.1)
    moments = [moment for _, moment in called]
    assert since - moments[0] >= 0.1 and sum(moment >= since for moment in moments) == 20
    assert len(times) == 20 and all(each >= 2 for each in times)
    indices = [index for index, _ in called]
    assert all(a != b for a, b in itertools.pairwise(indices))


def test_slow_calls_are_fewer_but_enough(called: list[tuple[int, float]]) -> None:
    times, _ = timing.sustained_milliseconds(two_calls(called), runs=999, seconds=0.06, heat=0)
    assert timing.LEAST_RUNS < len(times) <= 30
    assert len(timing.single_milliseconds(two_calls(called), 99, seconds=0)) == timing.LEAST_RUNS


def test_conditions_are_medians_of_what_can_be_read() -> None:
    lines = ["1980, 120.5\n", "[N/A], 3\n", "1600, 695.2\n", "1590, 698.0\n", "\n"]
    assert timing.condition(lines) == timing.Condition(1600.0, 695.2)
    assert timing.condition(["Failed to initialize NVML"]) == timing.Condition()


def test_the_monitor_reads_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nwhile :; do echo 1605, 690.25; sleep 0.02; done\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    since = time.perf_counter()
    monitor = timing.Monitor("0")
    while not monitor._lines and time.perf_counter() < since + 10:
        time.sleep(0.02)
    assert monitor.stop(since) == timing.Condition(1605.0, 690.25)


@pytest.mark.parametrize("folder", ["", "/nowhere"], ids=["no program", "no stdbuf either"])
def test_without_nvidia_smi_the_condition_is_unknown(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stdbuf").write_text("#!/bin/sh\nexit 127\n")
    (tmp_path / "stdbuf").chmod(0o755)
    monkeypatch.setenv("PATH", folder or str(tmp_path))
    assert timing.Monitor("0").stop(0.0) == timing.Condition()


def test_a_cold_start_has_empty_caches_of_its_own(tmp_path: Path) -> None:
    variables = cache_variables(tmp_path)
    assert {"TRITON_CACHE_DIR", "SAMTRT_CACHE_DIR"} <= set(variables)
    assert len(set(variables.values())) == len(variables)
    assert not any(Path(folder).exists() for folder in variables.values())
