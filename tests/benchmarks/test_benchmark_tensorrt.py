"""The benchmark of TensorRT engines: what was not built."""

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import tensorrt_engines as benchmark  # noqa: E402


def settings(work: Path, **more: Any) -> Namespace:
    given = {"models": ["vit_b"], "plugins": ["all", "none"], "max_batch_size": 1, "python": "-"}
    return Namespace(work=work, **given | more)


def test_an_engine_that_was_not_built_is_left_out_with_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = tmp_path / "vit_b-none-batch4"
    built.mkdir()
    (built / "encoder.engine").touch()
    found = list(benchmark._engines(settings(tmp_path), ["vit_b"], [1, 4]))
    assert found == [("tensorrt-none", 4, built)]
    assert capsys.readouterr().out.splitlines() == [
        f"vit_b-{name}: not built, left out" for name in ("all-batch1", "all-batch4", "none-batch1")
    ]


def test_what_a_step_needs_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: no engine to profile; `build` makes them$"):
        benchmark.profile(settings(tmp_path))
    with pytest.raises(SystemExit, match=r"^error: no network in .*vit_b-all; `write` makes it$"):
        benchmark.build(settings(tmp_path))
