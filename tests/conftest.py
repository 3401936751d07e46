"""Fixtures shared by the tests."""

import os

import pytest
import torch

from samtrt.encoders.tensorrt.library import import_tensorrt
from samtrt.errors import EngineError

if processes := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # Together no more threads than there are cores: more wait for each other.
    torch.set_num_threads(max(1, torch.get_num_threads() // int(processes)))


@pytest.fixture(scope="session")
def trt():
    """The installed TensorRT library; the test is skipped where none is installed."""
    try:
        return import_tensorrt()
    except EngineError as error:
        pytest.skip(str(error))


@pytest.fixture
def one_thread():
    """Torch on one thread: small tensors are slower on several, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
