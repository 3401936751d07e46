"""Copies by a few threads: all bytes, whatever the helpers are busy with."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from samtrt import host_memory
from samtrt.host_memory import begin_mapping, copy, end_mapping, together

MEGABYTE = 1 << 20


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, count, dtype=np.uint8)


@pytest.mark.parametrize("count", [0, 1, 4095, 256 << 10, MEGABYTE + 1, 7 * MEGABYTE + 3])
def test_all_bytes_are_copied(count: int) -> None:
    source, target = noise(count), np.zeros(count + 2, np.uint8)
    copy(target[1:-1], source)
    np.testing.assert_array_equal(target[1:-1], source)
    assert target[0] == target[-1] == 0  # and no others


def test_the_caller_does_what_nobody_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """All helpers hang, as where other processes have the cores; nobody waits for them."""
    go_on, hanging = threading.Event(), threading.Barrier(host_memory.HELPERS + 1)
    with ThreadPoolExecutor(host_memory.HELPERS) as helpers:
        monkeypatch.setattr(host_memory, "_helpers", lambda process: helpers)

        def hang() -> None:
            hanging.wait()
            go_on.wait()

        for _ in range(host_memory.HELPERS):
            helpers.submit(hang)
        hanging.wait()
        try:
            source, target = noise(4 * MEGABYTE), np.empty(4 * MEGABYTE, np.uint8)
            end_mapping(begin_mapping(target))
            copy(target, source)
            np.testing.assert_array_equal(target, source)
        finally:
            go_on.set()


def test_pages_are_mapped_before_the_copy() -> None:
    """What maps a page writes there: not after the copy."""
    source = noise(8 * MEGABYTE) | 1
    for _ in range(20):
        target = np.empty(len(source), np.uint8)
        parts = np.split(target, 8)
        mappings = [begin_mapping(part) for part in parts]
        for part, own, mapping in zip(parts, np.split(source, 8), mappings, strict=True):
            end_mapping(mapping)
            copy(part, own)
        np.testing.assert_array_equal(target, source)


def test_an_error_of_a_task_is_the_callers() -> None:
    def fail() -> None:
        raise ValueError("a fault")

    for tasks in ([fail, lambda: None], [lambda: None, fail], [lambda: None] * 5 + [fail]):
        with pytest.raises(ValueError, match="a fault"):
            together(tasks)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_process_has_helpers_of_its_own() -> None:
    source, target = noise(4 * MEGABYTE), np.empty(4 * MEGABYTE, np.uint8)
    copy(target, source)
    child = os.fork()
    if child == 0:
        again = np.empty_like(target)
        copy(again, source)
        os._exit(0 if np.array_equal(again, source) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
