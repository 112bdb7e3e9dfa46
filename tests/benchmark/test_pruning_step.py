"""The timed step learns as a recipe says.

Shapes: S mask samples, B sequences, U units.
"""

from __future__ import annotations

import pytest
import torch

from pgprune_lightning.benchmark import Workload
from pgprune_lightning.benchmark.learning import Learning
from pgprune_lightning.benchmark.pruning_step import PruningStep
from pgprune_lightning.errors import UserError
from pgprune_lightning.masking import unit_layout_of
from pgprune_lightning.policy import (
    Adam,
    DenseLossControlVariate,
    FreeProbabilities,
    LeaveOneOut,
    LinearSurrogate,
    PGPEPolicy,
    StructuredLogits,
)
from pgprune_lightning.training.execution_choice import ExecutionChoice, ExecutionName
from tests.tiny_models import VOCABULARY, make_tiny_model

LEARNINGS = {
    "explored": Learning(policy=PGPEPolicy(), mask_granularity="sequence"),
    "structured": Learning(
        policy=StructuredLogits(),
        estimator=LinearSurrogate(DenseLossControlVariate(LeaveOneOut())),
        update=Adam,
        lr_rule="rms_change",
        mask_granularity="sequence",
    ),
    "kl": Learning(objective="kl_to_dense", lr_factors={"mlp_channel": 0.5}),
}


def step_of(
    workload: Workload, learning: Learning, execution: ExecutionName = "dense_masked"
) -> PruningStep:
    model = make_tiny_model("llama_gqa")
    space = unit_layout_of(model, workload.unit_kinds, workload.channels_per_unit)
    feasible_set = workload.feasible_set(space, 0.6)
    start_U = feasible_set.project(torch.full((space.num_units,), 0.6).double())
    batch_BT = workload.batch(VOCABULARY, torch.device("cpu"))
    choice = ExecutionChoice(model, space, execution)
    return PruningStep(choice, space, feasible_set, start_U, workload, batch_BT, learning)


@pytest.mark.parametrize("name", LEARNINGS)
def test_a_step_moves_the_policy(workload: Workload, name: str) -> None:
    learning = LEARNINGS[name]
    step = step_of(workload, learning)
    before_U = step.policy.keep_probabilities.detach().clone()
    losses_S = step(0)
    num_texts = workload.batch_size if learning.mask_granularity == "sequence" else 1
    assert losses_S.shape == (num_texts * workload.num_mask_samples,)
    moved_U = step.policy.keep_probabilities.detach().clone()
    assert not torch.equal(moved_U, before_U)
    assert type(step.policy) is type(learning.policy)
    assert not list(learning.policy.buffers()), "what was given has been left as it was"
    masks_SU = step.sample(1)
    assert len(masks_SU) == len(losses_S)
    step.update(torch.linspace(3.0, 4.0, len(masks_SU)).double(), masks_SU)
    assert not torch.equal(step.policy.keep_probabilities.detach(), moved_U)


def test_the_default_is_the_papers(workload: Workload) -> None:
    step = step_of(workload, Learning())
    assert type(step.policy) is FreeProbabilities
    assert len(step.sample(0)) == workload.num_mask_samples


def test_explored_masks_all_keep_the_budget_and_differ(workload: Workload) -> None:
    """Random metrics rank the units: of equal ones every mask would keep the same."""
    masks_SU = step_of(workload, LEARNINGS["explored"]).sample(0)
    assert len(masks_SU.sum(dim=1).unique()) == 1
    assert len(masks_SU.unique(dim=0)) > 1


def test_too_few_masks_for_an_estimator_are_refused() -> None:
    workload = Workload(batch_size=2, block_length=12, num_mask_samples=1)
    with pytest.raises(UserError, match="num_mask_samples"):
        step_of(workload, LEARNINGS["explored"])
