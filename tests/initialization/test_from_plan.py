"""Starting at the mask of a plan, and not at what its probabilities would rank first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pgprune_lightning.initialization.from_plan import load_start_plan, ranked_as
from pgprune_lightning.policy import BudgetScope, FeasibleSet, UnitLayout
from tests.policy_points import SCOPES
from tests.tiny_exports import make_plan


def _points(seed: int) -> Tensor:
    return torch.randn(30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("seed", range(5))
def test_the_mask_is_the_top_of_the_budget(
    space: UnitLayout, scope: BudgetScope, seed: int
) -> None:
    budget = FeasibleSet(space, 0.6, scope=scope)
    logits_U = _points(seed)
    mask_U = budget.deterministic_mask(logits_U + _points(seed + 10))
    assert not torch.equal(budget.deterministic_mask(logits_U), mask_U)
    ranked_U = ranked_as(mask_U, logits_U, budget)
    assert torch.equal(budget.deterministic_mask(ranked_U), mask_U)
    for constraint in budget.constraints:
        kept_N = mask_U[constraint.units]
        before_N, after_N = logits_U[constraint.units], ranked_U[constraint.units]
        least = before_N.sort(descending=True).values[kept_N.sum() - 1]
        stays_N = torch.where(kept_N, before_N >= least, before_N < least)
        assert torch.equal(after_N[stays_N], before_N[stays_N])
        torch.testing.assert_close(after_N[~stays_N], least.expand(int((~stays_N).sum())))


def test_where_the_ranking_is_the_mask_s_nothing_moves(space: UnitLayout) -> None:
    budget = FeasibleSet(space, 0.6)
    logits_U = _points(0)
    mask_U = budget.deterministic_mask(logits_U)
    assert torch.equal(ranked_as(mask_U, logits_U, budget), logits_U)


def test_a_mask_of_another_budget_moves_nothing(space: UnitLayout) -> None:
    logits_U = _points(0)
    mask_U = FeasibleSet(space, 0.8).deterministic_mask(_points(1))
    assert torch.equal(ranked_as(mask_U, logits_U, FeasibleSet(space, 0.5)), logits_U)


def test_units_are_the_same_whatever_else_the_model_has(space: UnitLayout, tmp_path: Path) -> None:
    """Before it is loaded, a head that is claimed to be tied is not counted."""
    make_plan(space).save(tmp_path)
    smaller = replace(space, total_parameters=space.total_parameters - 1)
    assert load_start_plan(str(tmp_path), smaller, "model").space == space
