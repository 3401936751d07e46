"""The stress program without a GPU: what it watches, counts and reads."""

import contextlib
import json
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hopper_stand_ins
import pytest
import torch
import triton_kernels as where_triton_runs  # before Triton's kernels: it chooses the interpreter
from oracle import tiny_config
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import stress
from benchmarks.stressing import encoders, kernels, triton_kernels, variants
from benchmarks.stressing.watch import SLOTS, Case, NoCorrectOutputError, Watched
from samtrt.kernels.hopper.launch import Launch
from samtrt.kernels.hopper.linear import RESIDUAL, TALL, WIDE

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (kernels.linear, "linear_layer"),
        (kernels.window_attention, "window_attention"),
        (kernels.global_attention, "global_attention"),
    ):
        monkeypatch.setattr(module, name, getattr(hopper_stand_ins, name))


def doubling(change: Any = lambda number, output: None) -> Case:
    """y = 2 x, changed in the call with some number."""
    x, numbers = torch.arange(12.0), iter(range(1000))

    def launch(outputs: Sequence[Tensor]) -> None:
        assert torch.isnan(outputs[0]).all()  # what was there before is gone
        outputs[0].copy_(2 * x)
        change(next(numbers), outputs[0])

    return Case("doubling", [torch.full((12,), float("nan"))], launch, [2 * x.double()], 1e-3)


def test_every_call_is_compared_bit_by_bit() -> None:
    def change(number: int, output: Tensor) -> None:
        if number == 6:
            output[5] = output[5].nextafter(torch.tensor(99.0))
        if number == 9:
            output[0] = -0.0  # equal, but another output

    watched = Watched(doubling(change))
    watched.call()
    assert watched.differing == 0 and "written over" in watched.what_differs()
    watched.call()
    assert watched.differing == 1
    assert "call 1 output 0: 1 elements within [5] … [5], 0 NaN" in watched.what_differs()
    watched.call()
    assert watched.calls == 1 + 3 * SLOTS
    assert watched.differing == 2


def test_the_first_output_must_be_correct() -> None:
    def wrong_at_first(number: int, output: Tensor) -> None:
        output *= 1 + (number == 0)

    watched = Watched(doubling(wrong_at_first))
    watched.call()
    assert watched.differing == watched.wrong == 1 and watched.calls == 2 + SLOTS

    def wrong(number: int, output: Tensor) -> None:
        output[3] = float("nan")

    with pytest.raises(NoCorrectOutputError, match="doubling"):
        Watched(doubling(wrong))


@pytest.mark.parametrize("kind", kernels.KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.usefixtures("stand_ins")
def test_expected_values_are_those_of_the_tests_references(
    kind: kernels.Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = kernels.Maker.size
    monkeypatch.setattr(kernels.Maker, "size", lambda self, largest: size(self, min(largest, 12)))
    names = set()
    for case in kernels.Maker(3, "cpu").cases(6, [kind]):
        watched = Watched(case)
        watched.call()
        assert watched.differing == 0, case.name
        names.add(case.name)
    assert len(names) == 6
    again = [case.name for case in kernels.Maker(3, "cpu").cases(6, [kind])]
    assert set(again) == names


def test_every_triton_case_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HEADS": ((1, 16),), "SIDE": 8, "WINDOW": 4}.items():
        monkeypatch.setattr(triton_kernels, name, value)
    names = set()
    for kind in triton_kernels.kinds():
        watched = Watched(kind(kernels.Maker(0, where_triton_runs.DEVICE)))
        names.add(watched.case.name)
        assert watched.wrong == 0
    assert len(names) == 4


def test_the_fault_is_put_back_in_the_residual_layers_alone() -> None:
    program = TALL.program(RESIDUAL, torch.float16)
    assert variants.ordinary(program) is program
    fault = variants.racing(program)
    assert fault != program and len(fault.source) != len(program.source)
    assert fault.compile() != program.compile()
    both = variants.racing_jittered(program)
    assert variants.ARRIVE_WITHOUT_A_WAIT in both.source and "#define JITTER 1\n" in both.source
    window = kernels.window_attention.window_attention_program(64, 14, torch.float16)
    assert variants.racing(window) is window
    assert variants.jittered(window) != window


def test_launches_are_changed_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[str] = []
    monkeypatch.setattr(variants, "launch", lambda work, _: launched.append(work.program.source))
    program = WIDE.program(0, torch.float16)
    before = kernels.linear.launch
    with variants.programs_changed(variants.jittered):
        kernels.linear.launch(Launch(program, (1, 1, 1), 1, 1, ()), torch.device("cuda", 0))
    assert "#define JITTER" in launched[0]
    assert kernels.linear.launch in (before, variants.launch)


@pytest.mark.usefixtures("stand_ins")
def test_a_process_counts_by_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def cases(self: Any, count: int, kinds: Any) -> list[Case]:
        def change(number: int, output: Tensor) -> None:
            output[0] += number == 2

        def wrong(number: int, output: Tensor) -> None:
            output *= 3

        return [doubling(), doubling(change), doubling(wrong)]

    monkeypatch.setattr(kernels.Maker, "cases", cases)
    monkeypatch.setattr(kernels.Maker, "__init__", lambda self, seed: None)
    counts = stress.run(stress.Work("kernels", ("ordinary", "jittered"), 9.0, seed=1, calls=60))
    for count in counts.values():
        assert count.cases == 2 and count.differing == 1
        assert "doubling: call" in count.differences[0]
        assert len(count.failures) == 1 and "doubling" in count.failures[0]
    assert 60 <= sum(count.calls for count in counts.values()) < 60 + SLOTS
    assert all(count.found_after is not None for count in counts.values())

    sums = stress.total([counts, counts])
    assert sums["jittered"].differing == 2 and len(sums["jittered"].failures) == 2
    record = {
        "rows": [
            {"section": "kernels", "variant": name, "processes": 2} | vars(count)
            for name, count in sums.items()
        ],
        "sanitizer": [],
    }
    assert not stress.is_clean(record)
    assert "jittered" in stress.table(record)


SANITIZED = """\
========= COMPUTE-SANITIZER
COUNTS {"ordinary": {"cases": 3, "calls": 150, "differing": 0, "failures": []}}
========= Invalid __shared__ read of size 4 bytes
=========     at send(const Layer &, int)+0x2f0 in linear.cu:123
=========     by thread (0,0,0) in block (0,0,0)
=========
========= Uninitialized __global__ memory read of size 2 bytes
=========     at void at::native::vectorized_elementwise_kernel<(int)4>(int)+0x90
=========
========= Error: Race reported between Write access at void store<(int)36>(int)+0x20 in \
global_attention.cu:487
=========     and Read access at consume(Shared &)::operator ()(int) const+0x19 in \
global_attention.cu:626 [15200 hazards]
=========
========= Error: Race reported between Write access at multiply(int)+0x20 in linear.cu:487
=========     and Read access at consume(Shared &)+0x19 in linear.cu:626 [15200 hazards]
=========
========= ERROR SUMMARY: 4 errors
"""


def test_a_sanitizers_words_are_read() -> None:
    row = stress.read_sanitizer(SANITIZED)
    assert (row["calls"], row["errors"], row["others"]) == (150, 2, 1)
    assert list(row["explained"].values()) == [1]
    assert row["places"]["linear.cu send"] == 1
    clean = stress.read_sanitizer(
        "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
        + SANITIZED.splitlines()[1]
    )
    assert clean["errors"] == clean["others"] == 0
    record = {"rows": [], "sanitizer": [{"tool": "memcheck", "section": "kernels"} | row]}
    assert not stress.is_clean(record)
    assert "2 errors of ours" in stress.table(record)
    failed = stress.read_sanitizer(
        "\n".join(SANITIZED.splitlines()[2:5]) + "\nDevice not supported\n"
    )
    assert failed["failure"] == "the program did not end: Device not supported"
    assert failed["errors"] == 1 and failed["places"] == {"linear.cu send": 1}
    record["sanitizer"] = [{"tool": "memcheck", "section": "kernels"} | failed]
    assert "Device not supported" in stress.table(record)
    assert not stress.is_clean(record)


def test_references_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny encoder in the place of SAM's: first made, then found by the next process."""
    monkeypatch.setattr(encoders.sizes, "vit_b", lambda: tiny_config(depth=1))
    monkeypatch.setattr(encoders, "PICTURES", 2)
    lock = threading.Lock()
    encoders.share(lock, tmp_path)
    try:
        encoders.subject.cache_clear()
        _, pictures, made = encoders.subject("vit_b", 0, "cpu")
        assert [path.name for path in tmp_path.iterdir()] == ["vit_b-0.pt"]
        monkeypatch.setattr(encoders.Errors, "of", None)
        encoders.subject.cache_clear()
        _, again, found = encoders.subject("vit_b", 0, "cpu")
        assert torch.equal(again, pictures) and torch.equal(found.exact, made.exact)
        assert found.bounds == made.bounds and all(0 < bound < 1e-2 for bound in found.bounds)
        found.check("right", made.exact.float())
        with pytest.raises(NoCorrectOutputError, match="wrong, picture 1"):
            found.check("wrong", made.exact[1:].float() * 1.05, first=1)
    finally:
        encoders.share(contextlib.nullcontext(), tmp_path)
        encoders.FOLDER = None
        encoders.subject.cache_clear()


def test_the_committed_records_are_what_the_document_shows() -> None:
    """Nothing differs, kernels are clean under all tools; what a tool said of programs is told."""
    root = Path(__file__).resolve().parents[2]
    text = (root / "docs/kernels.md").read_text("utf-8")
    records = [
        json.loads((root / f"benchmarks/results/h200_stress{name}.json").read_text("utf-8"))
        for name in ("", "_programs")
    ]
    kernels_only = [row for row in records[0]["sanitizer"] if row["section"] == "kernels"]
    assert {row["tool"] for row in kernels_only} == set(stress.TOOLS)
    assert all("failure" not in row for row in kernels_only)
    for record in records:
        assert stress.is_clean(record | {"sanitizer": kernels_only})
        for row in record["sanitizer"]:
            if row["errors"]:
                assert f"{row['errors']}, as many as it prints" in text
                assert all(f"`{place.split()[1]}`" in text for place in row["places"])
            if "failure" in row:
                assert f"{row['tool']}" in text and "not clean runs" in text
    for row in records[0]["rows"]:
        assert f"{row['calls']:,}" in text
    for least, section in ((500_000, "kernels"), (20_000, "encoders")):
        rows = [row for row in records[0]["rows"] if row["section"] == section]
        assert sum(row["calls"] for row in rows) >= least
