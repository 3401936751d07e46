"""Fixtures shared by the tests, and the order in which ``make test`` hands out their files."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from samtrt.encoders.tensorrt.library import import_tensorrt
from samtrt.errors import EngineError
from samtrt.files import working_alone

# The files that take longest: of several processes none shall begin one at the end. Two Ray
# clusters wait for each other (``only_ray``), so they are far apart.
LONG_FILES = (
    *("test_readme", "test_ray", "test_page", "test_wheel", "test_kills", "test_demo_quality"),
    *("test_targets", "test_server_ray", "test_drop_in", "test_runtimes", "test_network_full_size"),
    *("test_server_load", "test_training", "test_sam_onnx_model", "test_export_decoder"),
    *("test_mask_decoder_hq", "test_server_ending", "test_demo", "test_stumbles"),
)

if processes := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # Together no more threads than there are cores: more wait for each other.
    share = max(1, torch.get_num_threads() // int(processes))
    torch.set_num_threads(share)
    os.environ.setdefault("OMP_NUM_THREADS", str(share))  # of the programs that tests start


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Hands out long files first, then those with most tests."""
    if not processes:
        return
    tests = Counter(item.path for item in items)

    def place(item: pytest.Item) -> tuple[int, int, str]:
        name = item.path.stem
        long = LONG_FILES.index(name) if name in LONG_FILES else len(LONG_FILES)
        return long, -tests[item.path], str(item.path)

    items.sort(key=place)


@pytest.fixture(scope="session")
def trt():
    """The installed TensorRT library; the test is skipped where none is installed."""
    try:
        return import_tensorrt()
    except EngineError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session", autouse=True)
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this run have, for what one makes for all."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if processes else own) / "shared"
    os.environ["SAMTRT_TESTS_SHARED"] = str(folder)
    return folder


@pytest.fixture(scope="module")
def only_ray(shared_folder: Path) -> Iterator[None]:
    """No other process of the tests has a Ray cluster meanwhile: one would find the other's."""
    with working_alone(shared_folder / "ray"):
        yield


@pytest.fixture
def one_thread():
    """Torch on one thread: small tensors are slower on several, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
