"""The dense model's loss as a control variate: no bias, and the fit is a regression on the past."""

import copy

import pytest
import torch

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy import (
    DenseLossControlVariate,
    GradientEstimator,
    LeaveOneOut,
    MovingAverageBaseline,
    PlainReinforce,
)
from tests.exact_estimates import independent_draws, mask_samples, quadratic_toy

S = torch.tensor([0.3, 0.6], dtype=torch.float64)
TOY = quadratic_toy(S, text_effect=2.0)


def fitted(
    estimator: GradientEstimator, num_masks: int = 4, num_texts: int = 4
) -> DenseLossControlVariate:
    made = DenseLossControlVariate(estimator)
    TOY.train(made, 30, num_masks, num_texts)
    return made


@pytest.mark.parametrize(("num_masks", "num_texts"), [(1, 1), (2, 2), (2, 1)])
@pytest.mark.parametrize("inner", [PlainReinforce, LeaveOneOut, MovingAverageBaseline])
def test_the_expectation_stays(
    inner: type[GradientEstimator], num_masks: int, num_texts: int
) -> None:
    if inner is LeaveOneOut and num_masks == 1:
        num_masks = 2
    estimator = fitted(inner())
    assert float(estimator.coefficient) > 0.5
    mean_U, _ = TOY.moments(estimator, independent_draws(S, num_masks), num_texts)
    torch.testing.assert_close(mean_U, TOY.gradient(), atol=1e-10, rtol=0)


def test_a_fit_that_saw_the_steps_own_masks_would_be_biased() -> None:
    """What the order of use and update is for."""

    class Hindsight(DenseLossControlVariate):
        def estimate(self, samples):  # type: ignore[no-untyped-def]
            before = copy.deepcopy(self.estimator)
            super().estimate(samples)
            self.estimator = before
            return super().estimate(samples)

    estimator = Hindsight(PlainReinforce())
    mean_U, _ = TOY.moments(estimator, independent_draws(S, 2), 2)
    assert float((mean_U - TOY.gradient()).abs().max()) > 0.01


def test_the_coefficient_is_the_weighted_regression_of_past_steps() -> None:
    estimator = DenseLossControlVariate(PlainReinforce(), forgetting=0.5, shrinkage=3.0)
    generator = torch.Generator().manual_seed(0)
    dense = torch.rand(3, 4, generator=generator, dtype=torch.float64) + 2
    losses = 5 + 0.4 * dense + 0.1 * torch.randn(3, 4, generator=generator, dtype=torch.float64)
    masks_SU = torch.rand(4, 2, generator=generator) < 0.5
    for dense_S, losses_S in zip(dense, losses, strict=True):
        estimator.estimate(mask_samples(losses_S, masks_SU, S, dense_losses_S=dense_S))
    weights = torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64).repeat_interleave(4)
    design = torch.stack([torch.ones(12, dtype=torch.float64), dense.flatten()], dim=1)
    root = weights.sqrt()[:, None]
    solution = torch.linalg.lstsq(root * design, root * losses.reshape(-1, 1)).solution
    shrunk = solution[1, 0] * weights.sum() / (weights.sum() + 3)
    torch.testing.assert_close(estimator.coefficient, shrunk, atol=1e-10, rtol=0)


def test_it_lowers_the_variance_where_texts_differ() -> None:
    def variance(estimator: GradientEstimator) -> float:
        return TOY.moments(estimator, independent_draws(S, 2), num_texts=2)[1]

    for inner in (LeaveOneOut(), MovingAverageBaseline()):
        TOY.train(inner, 30, 4, 4)
        assert variance(fitted(copy.deepcopy(inner))) < 0.5 * variance(inner)


def test_the_first_step_is_that_of_the_wrapped_one() -> None:
    masks_SU = torch.tensor([[True, False], [False, True]])
    samples = TOY.samples(masks_SU, (0, 1))
    estimator = DenseLossControlVariate(LeaveOneOut())
    assert estimator.estimate(samples).equal(LeaveOneOut().estimate(samples))
    assert float(estimator.used_baseline) == float(samples.losses_S.mean())


def test_one_text_alone_has_no_slope() -> None:
    estimator = DenseLossControlVariate(PlainReinforce())
    masks_SU = torch.tensor([[True, False], [False, True]])
    for _ in range(50):
        estimator.estimate(TOY.samples(masks_SU, (1,)))
    assert float(estimator.coefficient) == 0.0


def test_ranks_learn_the_same() -> None:
    masks_SU = torch.tensor([[True, False], [False, True]])
    one, other = TOY.samples(masks_SU, (0, 1)), TOY.samples(~masks_SU, (1, 0))
    gathered = {
        id(a): torch.cat([a, b])
        for a, b in (
            (one.losses_S, other.losses_S),
            (one.dense_losses_S, other.dense_losses_S),
        )
        if a is not None and b is not None
    }
    shared = DenseLossControlVariate(PlainReinforce())
    shared.estimate(one.among_ranks(lambda values: gathered.get(id(values), values.repeat(2))))
    alone = DenseLossControlVariate(PlainReinforce())
    alone.estimate(TOY.samples(torch.cat([masks_SU, ~masks_SU]), (0, 1, 1, 0)))
    torch.testing.assert_close(shared.moments, alone.moments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"forgetting": 0.0}, "forgetting: must lie in"),
        ({"forgetting": 1.5}, "given 1.5"),
        ({"shrinkage": -1.0}, "at least 0 samples, given -1.0"),
    ],
)
def test_wrong_numbers_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DenseLossControlVariate(PlainReinforce(), **options)
