"""The reference computes what ours computes: the same masks, losses and updates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from pgprune_lightning.benchmark import Workload
from pgprune_lightning.benchmark.pruning_step import PruningStep
from pgprune_lightning.benchmark.reference_step import ReferenceStep
from pgprune_lightning.masking import unit_layout_of
from pgprune_lightning.training.execution_choice import ExecutionChoice, ExecutionName
from tests.tiny_models import VOCABULARY, make_tiny_model


def both(
    model: PreTrainedModel, workload: Workload, execution: ExecutionName, start: float = 0.6
) -> tuple[ReferenceStep, PruningStep]:
    space = unit_layout_of(model, workload.unit_kinds, workload.channels_per_unit)
    feasible_set = workload.feasible_set(space, start)
    start_U = feasible_set.project(torch.full((space.num_units,), start).double())
    batch_BT = workload.batch(VOCABULARY, torch.device("cpu"))
    masked = ExecutionChoice(model, space, execution)
    return (
        ReferenceStep(model, space, feasible_set, start_U, workload, batch_BT),
        PruningStep(masked, space, feasible_set, start_U, workload, batch_BT),
    )


@pytest.mark.parametrize("execution", ["dense_masked", "compact", "batched"])
@pytest.mark.parametrize(
    "units",
    [
        {},
        {"budget": "parameters"},
        {"unit_kinds": ("attention", "mlp")},
        {"unit_kinds": ("layer",)},
        {"unit_kinds": ("mlp_channel",), "channels_per_unit": 4},
    ],
    ids=str,
)
def test_losses_and_updates_are_the_same(
    workload: Workload, units: dict[str, Any], execution: ExecutionName
) -> None:
    workload = replace(workload, lr=0.1, **units)
    reference, ours = both(make_tiny_model("llama_gqa"), workload, execution)
    for step in range(3):
        torch.testing.assert_close(reference(step), ours(step), atol=2e-5, rtol=0)
        s_U = ours.policy.keep_probabilities.detach()
        torch.testing.assert_close(reference.probabilities_U, s_U, atol=2e-5, rtol=0)
    assert s_U.std() > 0.01, "the policy has moved"


def test_the_update_alone_is_the_same_to_the_last_digits(workload: Workload) -> None:
    workload = replace(workload, lr=0.5)
    reference, ours = both(make_tiny_model("llama_gqa"), workload, "dense_masked")
    for step in range(5):
        masks_SU = ours.sample(step)
        losses_S = torch.tensor([3.0, 3.5 - step / 3], dtype=torch.float64)
        ours.update(losses_S, masks_SU)
        reference.update(losses_S, masks_SU)
        s_U = ours.policy.keep_probabilities.detach()
        torch.testing.assert_close(reference.probabilities_U, s_U, atol=1e-12, rtol=0)


def test_no_hook_is_left(workload: Workload) -> None:
    model = make_tiny_model("llama_gqa")
    reference, _ = both(model, workload, "dense_masked")
    reference(0)
    assert not any(module._forward_pre_hooks for module in model.modules())
