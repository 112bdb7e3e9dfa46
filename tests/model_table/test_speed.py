"""Models are timed in turn, by medians, and one that fails leaves the others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pgprune_lightning.evaluation import ModelFacts, TorchModel
from pgprune_lightning.model_table.protocol import SpeedProtocol
from pgprune_lightning.model_table.speed import time_in_turn
from tests.tiny_models import make_tiny_model

FACTS = ModelFacts("a clock", "float32", 10, 40, None, 97)
PROTOCOL = SpeedProtocol(batch_size=2, prompt_tokens=8, new_tokens=4, repetitions=3)


class _Clock:
    """A model whose generations take given seconds."""

    def __init__(self, name: str, log: list[str], seconds: list[tuple[float, float]]) -> None:
        self.facts = FACTS
        self.device = torch.device("cpu")
        self.name, self.log, self.seconds = name, log, seconds

    def token_nll(self, tokens_BT: Tensor) -> Tensor:
        raise NotImplementedError

    def timed_generation(self, prompts_BT: Tensor, num_tokens: int) -> tuple[float, float]:
        assert (tuple(prompts_BT.shape), num_tokens) == ((2, 8), 4)
        self.log.append(self.name)
        if not self.seconds:
            raise RuntimeError("it broke")
        return self.seconds.pop(0)


def test_in_turn_by_medians() -> None:
    log: list[str] = []
    timed = [(1.0, 4.0), (9.0, 9.0), (2.0, 8.0)]
    models = {
        "a": _Clock("a", log, [(99.0, 99.0), *timed]),
        "broken": _Clock("broken", log, []),
        "b": _Clock("b", log, [(99.0, 99.0)] * 4),
    }
    measured, errors = time_in_turn(models, PROTOCOL)
    assert log == ["a", "broken", "b", "a", "b", "a", "b", "a", "b"]
    assert errors == {"broken": "RuntimeError: it broke"}
    assert set(measured) == {"a", "b"}
    speed = measured["a"]
    assert speed["seconds"] == {"prefill": [1.0, 9.0, 2.0], "decode": [4.0, 9.0, 8.0]}
    assert speed["prefill_seconds"] == 2.0
    assert speed["prefill_tokens_per_second"] == 2 * 8 / 2.0
    assert speed["decode_seconds_per_token"] == 8.0 / 4
    assert speed["decode_tokens_per_second"] == 2 * 4 / 8.0
    assert speed["peak_memory_bytes"] is None, "this runtime's memory is not known"


def test_peak_memory_is_of_one_model() -> None:
    """Others that lie in memory do not count, and what generation takes does."""
    small, large = make_tiny_model("llama_gqa"), make_tiny_model("llama_gqa", hidden_size=512)
    models = {"small": TorchModel(small), "large": TorchModel(large)}
    long = replace(PROTOCOL, prompt_tokens=1000, batch_size=16, new_tokens=1, repetitions=1)
    measured, errors = time_in_turn(models, long)
    assert not errors
    peaks = {name: entry["peak_memory_bytes"] for name, entry in measured.items()}
    if peaks["small"] is None:
        pytest.skip("this system does not tell the memory of a process")
    for name, model in models.items():
        assert peaks[name] >= model.facts.parameter_bytes
    hidden_bytes = 16 * 1000 * 512 * 4
    assert peaks["large"] >= models["large"].facts.parameter_bytes + hidden_bytes
