"""Workers of a real Ray: the same bytes as one process, whatever is killed meanwhile.

One cluster of two machines (of processes on this one) serves all tests; starting it takes most of
their time.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from server_support import encoded, picture, tiny_model

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")
pytestmark = pytest.mark.slow

import ray_loads  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from samtrt.cli import commands  # noqa: E402
from samtrt.console import run_script  # noqa: E402
from samtrt.errors import EngineError, InputError  # noqa: E402
from samtrt.jobs.folder import segment_folder  # noqa: E402
from samtrt.jobs.progress import FolderReport  # noqa: E402
from samtrt.jobs.ray import Workers  # noqa: E402
from samtrt.jobs.segmenting import AT_ONCE  # noqa: E402
from samtrt.jobs.windows import Windowing  # noqa: E402

# All that the command gives, in its order.
ARGUMENTS: dict[str, Any] = {
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.0,
    "box_nms_thresh": 0.7,
    "points_per_side": 2,
    "points_per_batch": 64,
    "crop_n_layers": 0,
    "min_mask_region_area": 0,
}
OPTIONS = ["--points-per-side", "2", "--pred-iou-thresh", "0", "--stability-score-thresh", "0"]
FORMATS = ["json", "png", "coco"]
COUNT = 6
ONCE, ALWAYS, BROKEN = 1, 3, 4  # which pictures kill their worker, or fail in it
STORE = 80 << 20  # bytes of a machine's object store
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": STORE}

Tree = dict[Path, bytes]


@pytest.fixture(scope="module")
def cluster(only_ray: None) -> Iterator[Cluster]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    ray.init(address=made.address, log_to_driver=False)
    ray.cloudpickle.register_pickle_by_value(ray_loads)  # the machines have no tests
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, and a file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(COUNT):
        image = picture(number)
        image[0, 0] = number
        (folder / f"{number}.png").write_bytes(encoded(image))
    (folder / "bad.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def expected(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """What one process without Ray makes of them."""
    out = tmp_path_factory.mktemp("one")
    report = segment_folder(
        ray_loads.load(tiny_model()), photos, out, FORMATS, show_progress=False, **ARGUMENTS
    )
    assert len(report.segmented) == COUNT and list(report.failed) == [Path("bad.png")]
    return tree(out)


def tree(folder: Path) -> Tree:
    """All files, locks of a killed run included."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}


def run(load: Any, photos: Path, out: Path, count: int = 2) -> FolderReport:
    return segment_folder(
        load, photos, out, FORMATS, show_progress=False, workers=Workers(count), **ARGUMENTS
    )


@pytest.mark.usefixtures("cluster")
def test_workers_make_the_bytes_of_one_process(
    photos: Path, expected: Tree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, record = tmp_path / "out", tmp_path / "report.json"
    arguments = [
        "everything", photos, "--params", tiny_model(), "--output-dir", out, "--workers", "2",
        "--format", ",".join(FORMATS), "--json", record, *OPTIONS,
    ]  # fmt: skip
    status = run_script(lambda: commands.run([str(argument) for argument in arguments]))
    printed = capsys.readouterr()
    assert status == 1, printed.err
    assert tree(out) == expected
    assert "segmented   6 pictures" in printed.out and ", 2 workers " in printed.out
    assert "bad.png is not a picture" in printed.out
    lines = [line for line in printed.err.splitlines() if line.startswith("[")]
    assert {line.split(":")[0].split("] ")[1] for line in lines} >= {"0.png", "5.png", "bad.png"}
    found = json.loads(record.read_text())
    assert (found["segmented"], found["workers"], found["resumed"]) == (COUNT, 2, 0)
    assert list(found["failed"]) == ["bad.png"] and 0 < found["workers_at_work"] <= 1


@pytest.mark.usefixtures("cluster")
def test_windows_and_threads_of_workers_make_the_bytes_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker with two pictures at once, as on a GPU; a picture's windows go to both workers."""
    pytest.importorskip("rasterio")
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"{number}.png").write_bytes(encoded(picture(number)))

    def job(out: Path, load: Any, workers: Workers | None) -> Tree:
        report = segment_folder(
            load, tmp_path / "in", out, ["json", "coco"], show_progress=False, workers=workers,
            windowing=Windowing(96, 32), **ARGUMENTS,
        )  # fmt: skip
        assert len(report.segmented) == 3 and 0 < report.at_work <= 1
        return tree(out)

    load = partial(ray_loads.load, tiny_model())
    alone = job(tmp_path / "one", load, None)
    monkeypatch.setitem(AT_ONCE, "cpu", 2)
    assert job(tmp_path / "two", load, Workers(2)) == alone
    assert {path.as_posix() for path in alone} == {
        "0.png.json",
        "1.png.json",
        "2.png.json",
        "coco.json",
    }


@pytest.mark.usefixtures("cluster")
def test_workers_that_are_killed_are_replaced_and_pictures_that_kill_are_rows(
    photos: Path, expected: Tree, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flag, out = tmp_path / "died", tmp_path / "out"
    load = partial(ray_loads.load_faulty, tiny_model(), flag, ONCE, ALWAYS, BROKEN)
    report = run(load, photos, out)
    assert flag.exists()
    bad = [Path(f"{ALWAYS}.png"), Path(f"{BROKEN}.png"), Path("bad.png")]
    assert list(report.failed) == bad
    assert "its workers died, 2 of them with this picture alone" in report.failed[bad[0]]
    assert "unexpected ZeroDivisionError: a bug" in report.failed[bad[1]]
    (record,) = (one for one in caplog.records if one.name == "samtrt.jobs.folder")
    assert "ray_loads.py" in record.getMessage() and str(bad[1]) in record.getMessage()
    assert len(report.segmented) == COUNT - 2
    assert list(report.segmented) == sorted(report.segmented)  # whoever was done first
    made = tree(out)
    others = {name for name in expected if not name.name.startswith(f"{ALWAYS}.png")}
    others -= {Path(f"{BROKEN}.png.{end}") for end in ("json", "png")}
    assert set(made) == others
    assert all(made[name] == expected[name] for name in others if name.name != "coco.json")


def test_a_machine_that_is_killed_is_done_without(
    cluster: Cluster, photos: Path, expected: Tree, tmp_path: Path
) -> None:
    flag, node, out = tmp_path / "at work", tmp_path / "node", tmp_path / "out"
    second = cluster.add_node(**NODE)
    node.write_text(second.node_id)
    load = partial(ray_loads.load_waiting_on, tiny_model(), flag, node)

    def kill() -> None:
        wait_for(flag)
        cluster.remove_node(second, allow_graceful=False)

    thread = threading.Thread(target=kill)
    thread.start()
    report = run(load, photos, out, count=3)
    thread.join()
    assert flag.exists() and len(report.segmented) == COUNT
    assert tree(out) == expected


def test_the_process_that_began_it_may_be_killed(
    cluster: Cluster, photos: Path, expected: Tree, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    begun = start_on(cluster, photos, out)
    wait_for(out, lambda: any(out.glob("*.json")), begun)
    begun.send_signal(signal.SIGKILL)
    begun.wait()
    left = tree(out)
    assert Path("coco.json") not in left
    report = run(partial(ray_loads.load, tiny_model()), photos, out)
    assert report.resumed and len(report.resumed) + len(report.segmented) == COUNT
    assert tree(out) == expected


@pytest.mark.usefixtures("cluster")
def test_what_cannot_begin_is_told_in_one_line(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(EngineError, match="no engine in"):
        run(partial(ray_loads.load_nothing, tiny_model()), photos, out)
    with pytest.raises(InputError, match="points_per_side is 0"):
        segment_folder(
            partial(ray_loads.load, tiny_model()),
            photos,
            out,
            show_progress=False,
            workers=Workers(2),
            points_per_side=0,
        )
    with pytest.raises(InputError, match="workers load the model themselves"):
        run(ray_loads.load(tiny_model()), photos, out)
    assert not out.exists()


def start_on(cluster: Cluster, photos: Path, out: Path) -> "subprocess.Popen[bytes]":
    """The command, in a process of its own, on the cluster."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "samtrt", "everything", photos, "--params", tiny_model()),
            *("--output-dir", out, "--ray", cluster.address, "--workers", "2", *OPTIONS),
            *("--format", ",".join(FORMATS)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def wait_for(path: Path, there: Any = None, process: Any = None) -> None:
    """Until it is there."""
    end = time.monotonic() + 800
    while not (there or path.exists)():
        assert time.monotonic() < end and (process is None or process.poll() is None)
        time.sleep(0.02)
