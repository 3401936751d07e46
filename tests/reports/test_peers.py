"""Meta's package beside a torchvision whose binary loads, and beside one whose does not."""

import sys
from types import ModuleType

import pytest

from samtrt.reports import peers


def test_operators_are_left_to_a_binary_that_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Declared a second time, they end the process."""
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setattr(peers, "_libraries", [])
    peers.import_torchvision()
    assert peers._libraries == []


def test_another_failure_is_not_hidden(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('something else')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with pytest.raises(RuntimeError, match="something else"):
        peers.import_torchvision()
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
