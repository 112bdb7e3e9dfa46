"""Pairs of opposite moves: their estimate is the gradient, over every way a pair can fall.

Shapes: U units, as many moves; a unit stays where its mean plus its move is above zero.
"""

import itertools
import math

import pytest
import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy import SymmetricExploration
from tests.exact_estimates import all_masks, mask_samples

MEANS = torch.tensor([-0.7, 0.2, 1.1], dtype=torch.float64)
LOSSES = torch.tensor([9.0, 7.5, 8.0, 4.0, 6.0, 6.5, 3.0, 2.0], dtype=torch.float64)


def density(x: float) -> float:
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi) if math.isfinite(x) else 0.0


def below(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def masks_of(moves_SU: Tensor) -> Tensor:
    return MEANS + moves_SU > 0


def loss_of(mask_U: Tensor) -> Tensor:
    return LOSSES[(all_masks(len(MEANS)) == mask_U).all(dim=1)][0]


def cells(mean: float) -> list[tuple[float, float]]:
    """Probability and mean move of each range in which a pair has the same two masks."""
    edges = [-math.inf, -abs(mean), abs(mean), math.inf]
    ranges = []
    for low, high in itertools.pairwise(edges):
        probability = below(high) - below(low)
        ranges.append((probability, (density(low) - density(high)) / probability))
    return ranges


def exact_gradient() -> Tensor:
    """Of the expected loss by the means, from P(unit stays) = Phi(mean)."""
    means_U = MEANS.clone().requires_grad_()
    keep_U = torch.special.ndtr(means_U)
    masks_MU = all_masks(len(MEANS))
    probability_M = torch.where(masks_MU, keep_U, 1 - keep_U).prod(dim=1)
    (gradient_U,) = torch.autograd.grad(probability_M @ LOSSES, means_U)
    return gradient_U


def estimate(move_U: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    estimator = SymmetricExploration(len(MEANS), masks_of)
    monkeypatch.setattr(torch, "randn", lambda *_, **__: move_U[None])
    masks_SU = estimator.draw(torch.zeros(len(MEANS)), 2, torch.Generator())
    losses_S = torch.stack([loss_of(mask_U) for mask_U in masks_SU])
    return estimator.estimate(mask_samples(losses_S, masks_SU, torch.special.ndtr(MEANS)))


def test_the_expectation_is_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    expected_U = torch.zeros_like(MEANS)
    for way in itertools.product(*(cells(float(mean)) for mean in MEANS)):
        probability = math.prod(share for share, _ in way)
        move_U = torch.tensor([move for _, move in way], dtype=torch.float64)
        # Given the masks the estimate is linear in the move: its mean is that of the mean move.
        expected_U += probability * estimate(move_U, monkeypatch)
    torch.testing.assert_close(expected_U, exact_gradient(), atol=1e-12, rtol=0)


def test_several_pairs_are_averaged() -> None:
    estimator = SymmetricExploration(3, masks_of)
    masks_SU = estimator.draw(torch.zeros(3), 4, torch.Generator().manual_seed(0))
    (first_U, second_U) = torch.randn(
        2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(masks_SU[1], MEANS - first_U > 0)
    assert torch.equal(masks_SU[2], MEANS + second_U > 0)
    losses_S = torch.tensor([3.0, 1.0, 2.0, 6.0], dtype=torch.float64)
    gradient_U = estimator.estimate(mask_samples(losses_S, masks_SU, torch.full((3,), 0.5)))
    torch.testing.assert_close(gradient_U, (first_U - 2 * second_U) / 2)
    assert estimator.used_baseline == 3.0


@pytest.mark.parametrize("masks", [0, 1, 3])
def test_an_odd_number_of_masks_is_refused(masks: int) -> None:
    with pytest.raises(UserError, match="even number"):
        SymmetricExploration(3, masks_of).check_mask_samples(masks)
