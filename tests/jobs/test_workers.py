"""What is refused of workers before a Ray is asked."""

import socket
from types import SimpleNamespace
from typing import Any

import pytest

from samtrt.errors import InputError
from samtrt.jobs.ray import _connect


def test_an_address_where_nobody_answers_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "127.0.0.1:99999999"):
        with pytest.raises(InputError, match=r"no Ray cluster is reached at .*; give the address"):
            _connect(None, address)


def test_what_ray_says_of_an_address_is_one_line() -> None:
    def init(**_: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nSecond line")

    with pytest.raises(InputError, match=r"reached at auto \(Could not find any running Ray inst"):
        _connect(SimpleNamespace(init=init), "auto")
