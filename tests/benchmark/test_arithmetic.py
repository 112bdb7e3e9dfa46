"""Operations are counted as by hand, and the peak is one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pgprune_lightning.benchmark import Workload
from pgprune_lightning.benchmark.arithmetic import (
    kept_flops,
    kept_projection_parameters,
    matmul_peak,
)
from pgprune_lightning.masking import unit_layout_of
from tests.tiny_models import VOCABULARY, make_tiny_model

# llama_gqa: hidden 32, four heads and two KV heads of 8, MLP 24, three layers.
ATTENTION = 32 * 32 + 2 * 32 * 16 + 32 * 32
MLP = 3 * 32 * 24


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["kv_group", "mlp_channel"], 3 * (0.5 * ATTENTION + 0.25 * MLP)),
        (["kv_group"], 3 * (0.5 * ATTENTION + MLP)),
        (["mlp"], 3 * (ATTENTION + 0.25 * MLP)),
        (["layer"], 3 * 0.5 * (ATTENTION + MLP)),
    ],
    ids=str,
)
def test_kept_weights_by_hand(kinds: list[Any], expected: float) -> None:
    model = make_tiny_model("llama_gqa")
    space = unit_layout_of(model, kinds)
    kept_U = torch.full((space.num_units,), 0.5)
    for kind in set(kinds) & {"mlp_channel", "mlp"}:
        kept_U[space.units_of(kind)] = 0.25
    assert kept_projection_parameters(model, space, kept_U) == pytest.approx(expected)


def test_operations_of_a_step_by_hand(workload: Workload) -> None:
    model = make_tiny_model("llama_gqa")
    space = unit_layout_of(model, ["kv_group", "mlp_channel"])
    kept_U = torch.full((space.num_units,), 0.5)
    layers = 3 * 0.5 * (ATTENTION + MLP) * 2 * 12
    vocabulary = VOCABULARY * 32 * 2 * 11
    expected = 2 * 2 * (layers + vocabulary)
    assert kept_flops(model, space, kept_U, workload) == pytest.approx(expected)


def test_the_peak_is_that_of_a_computer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgprune_lightning.benchmark.arithmetic.SQUARE", {"cpu": 256})
    assert 1e8 < matmul_peak(torch.float32, torch.device("cpu")) < 1e15
