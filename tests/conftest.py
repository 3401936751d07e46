"""Fixtures shared by the tests."""

import pytest
import torch

from samtrt.encoders.tensorrt.library import import_tensorrt
from samtrt.errors import EngineError


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
