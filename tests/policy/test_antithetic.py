"""Opposite masks: what they are, and that they give the gradient."""

import pytest
import torch

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy import Antithetic
from pgprune_lightning.policy.estimators import antithetic_masks
from tests.exact_estimates import Toy, antithetic_draws, mask_samples, quadratic_toy

S = torch.tensor([0.1, 0.5, 0.7], dtype=torch.float64)


@pytest.mark.parametrize("num_pairs", [1, 2])
def test_the_expectation_is_the_gradient(num_pairs: int) -> None:
    toy = quadratic_toy(S)
    mean_U, _ = toy.moments(Antithetic(), antithetic_draws(S, num_pairs))
    torch.testing.assert_close(mean_U, toy.gradient(), atol=1e-12, rtol=0)


def test_pairs_of_different_texts_are_averaged() -> None:
    toy = quadratic_toy(S[:2], text_effect=2.0)
    mean_U, _ = toy.moments(Antithetic(), antithetic_draws(S[:2], 2), num_texts=2)
    torch.testing.assert_close(mean_U, toy.gradient(), atol=1e-12, rtol=0)


def test_by_the_deviation_it_is_the_gradient_times_it() -> None:
    toy = quadratic_toy(S)
    mean_U, _ = toy.moments(Antithetic("standard_deviation"), antithetic_draws(S, 1))
    torch.testing.assert_close(mean_U, (S * (1 - S)).sqrt() * toy.gradient(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("s", [0.1, 0.5, 0.8])
def test_the_variance_of_one_unit_is_this(s: float) -> None:
    # The masks differ with probability 2 q, q = min(s, 1 - s), and then the estimate is d / (2 q).
    toy = Toy(
        torch.tensor([s], dtype=torch.float64),
        losses_XM=torch.tensor([[5.0, 3.0]], dtype=torch.float64),
        dense_X=torch.zeros(1, dtype=torch.float64),
    )
    _, variance = toy.moments(Antithetic(), antithetic_draws(toy.s_U, 1))
    assert variance == pytest.approx(4 / (2 * min(s, 1 - s)) - 4, abs=1e-12)


def test_each_mask_of_a_pair_has_the_policys_marginals() -> None:
    uniform_PU = (torch.arange(1000, dtype=torch.float64)[:, None] / 1000).expand(-1, 5)
    s_U = torch.tensor([0.0, 0.25, 0.5, 0.875, 1.0], dtype=torch.float64)
    masks_SU = antithetic_masks(uniform_PU, s_U)
    for masks_PU in (masks_SU[0::2], masks_SU[1::2]):
        assert masks_PU.double().mean(dim=0).tolist() == s_U.tolist()
    # As different as they can be: never both kept below one half, never both dropped above it.
    both_PU, neither_PU = masks_SU[0::2] & masks_SU[1::2], ~masks_SU[0::2] & ~masks_SU[1::2]
    assert both_PU.sum(dim=0).tolist() == [0, 0, 0, 750, 1000]
    assert neither_PU.sum(dim=0).tolist() == [1000, 500, 0, 0, 0]


def test_it_draws_pairs_behind_one_another() -> None:
    s_U = torch.full((400,), 0.5, dtype=torch.float64)
    masks_SU = Antithetic().draw(s_U, 6, torch.Generator().manual_seed(0))
    assert masks_SU.shape == (6, 400)
    assert masks_SU[0::2].equal(~masks_SU[1::2])
    assert not masks_SU[0].equal(masks_SU[2])


def test_units_at_a_bound_have_no_gradient_and_spoil_no_other() -> None:
    s_U = torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64)
    masks_SU = torch.tensor([[False, True, True], [False, True, False]])
    gradient_U = Antithetic().estimate(mask_samples(torch.tensor([3.0, 1.0]), masks_SU, s_U))
    assert gradient_U.tolist() == [0.0, 0.0, 2.0]


@pytest.mark.parametrize("num_mask_samples", [1, 3])
def test_an_odd_number_of_masks_is_refused(num_mask_samples: int) -> None:
    with pytest.raises(UserError, match=f"even number .* given {num_mask_samples}"):
        Antithetic().check_mask_samples(num_mask_samples, num_texts=8)
