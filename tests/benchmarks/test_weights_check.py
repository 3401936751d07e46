"""The cost of looking at the weights: both times are of what they say."""

import pytest
import torch
from oracle import tiny_config

from benchmarks.weights_check import Cost, cost_of_check
from samtrt.encoders.accelerated import Acceleration


def test_check_and_encode_are_timed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    observe, looks = Acceleration.observe, []

    def counted(self: Acceleration, *arguments: object) -> int:
        looks.append(observe(self, *arguments))  # type: ignore[arg-type]
        return looks[-1]

    monkeypatch.setattr(Acceleration, "observe", counted)
    cost = cost_of_check(tiny_config(), torch.device("cpu"), runs=3)
    # One to make the runtime, then each time by itself and within the encode.
    assert looks == [1] * 7
    assert cost.check > 0 and cost.encode > 0


def test_the_share_is_printed() -> None:
    assert str(Cost(check=3.0, encode=1200.0)) == "check 3.0 ms, encode 1200 ms: 0.25%"
