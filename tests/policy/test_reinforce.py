"""The estimators' expectation against the exact gradient, over all masks."""

import copy
import io
import itertools

import pytest
import torch

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy import (
    LeaveOneOut,
    MovingAverageBaseline,
    PlainReinforce,
)
from tests.exact_estimates import mask_samples

U = 4
MASKS = torch.tensor(list(itertools.product([False, True], repeat=U)))
GENERATOR = torch.Generator().manual_seed(0)
LOSSES = torch.randn(len(MASKS), generator=GENERATOR, dtype=torch.float64) + 5
S = torch.tensor([0.05, 0.4, 0.7, 0.98], dtype=torch.float64)


def exact_gradient():
    """Differentiate sum over m of p(m | s) L(m), the polynomial itself."""
    s = S.clone().requires_grad_()
    expectation = torch.where(MASKS, s, 1 - s).prod(dim=1) @ LOSSES
    return torch.autograd.grad(expectation, s)[0]


def expected_gradient(estimator, num_mask_samples):
    """Average the estimate over all tuples of masks, each from the same state."""
    probabilities = torch.where(MASKS, S, 1 - S).prod(dim=1)
    total = torch.zeros(U, dtype=torch.float64)
    for chosen in itertools.product(range(len(MASKS)), repeat=num_mask_samples):
        rows = list(chosen)
        gradient = copy.deepcopy(estimator).estimate(mask_samples(LOSSES[rows], MASKS[rows], S))
        total += probabilities[rows].prod() * gradient
    return total


def with_baseline(value, **options):
    estimator = MovingAverageBaseline(**options)
    estimator.baseline.fill_(value)
    estimator.num_updates.fill_(3)
    return estimator


def test_the_exact_gradient_is_the_central_difference():
    def expectation(s):
        return torch.where(MASKS, s, 1 - s).prod(dim=1) @ LOSSES

    # Linear in each coordinate: the central difference has no error of its own.
    steps = torch.eye(U, dtype=torch.float64) * 0.5
    differences = torch.stack([expectation(S + step) - expectation(S - step) for step in steps])
    torch.testing.assert_close(exact_gradient(), differences, atol=1e-12, rtol=0)


@pytest.mark.parametrize("num_mask_samples", [1, 2])
@pytest.mark.parametrize(
    "estimator",
    [
        PlainReinforce(),
        with_baseline(5.0),
        with_baseline(-3.0, window=1),
        MovingAverageBaseline(start="zero"),
    ],
    ids=["plain", "baseline 5", "baseline -3", "first step from zero"],
)
def test_unbiased(estimator, num_mask_samples):
    torch.testing.assert_close(
        expected_gradient(estimator, num_mask_samples), exact_gradient(), atol=1e-10, rtol=0
    )


@pytest.mark.parametrize("num_mask_samples", [2, 3])
def test_leave_one_out_is_unbiased(num_mask_samples):
    torch.testing.assert_close(
        expected_gradient(LeaveOneOut(), num_mask_samples), exact_gradient(), atol=1e-10, rtol=0
    )


def test_leave_one_out_compares_with_the_mean_of_the_others():
    s = torch.full((1,), 0.5, dtype=torch.float64)  # the score of a kept unit is 2
    masks = torch.tensor([[True], [True], [False]])
    gradient = LeaveOneOut().estimate(mask_samples(torch.tensor([1.0, 4.0, 7.0]), masks, s))
    advantages = [1 - (4 + 7) / 2, 4 - (1 + 7) / 2, 7 - (1 + 4) / 2]
    expected = 2 * (advantages[0] + advantages[1] - advantages[2]) / 3
    assert gradient.item() == pytest.approx(expected, abs=1e-12)


def test_leave_one_out_cancels_how_difficult_the_text_is():
    easy, hard = LeaveOneOut(), LeaveOneOut()
    gradient = easy.estimate(mask_samples(LOSSES[:3], MASKS[:3], S))
    torch.testing.assert_close(
        hard.estimate(mask_samples(LOSSES[:3] + 100, MASKS[:3], S)), gradient
    )


def test_leave_one_out_needs_another():
    with pytest.raises(UserError, match=r"at least 2, given 1"):
        LeaveOneOut().check_mask_samples(1)


@pytest.mark.parametrize("num_mask_samples", [1, 2])
@pytest.mark.parametrize("window", [1, 2, 5])
def test_updating_before_use_shrinks_the_gradient(window, num_mask_samples):
    # The updated baseline holds L(m_i) / (T N_s). With E[L(m_j) score(m_i)] = 0 for j != i and
    # E[L(m_i) score(m_i)] the gradient, that share of the gradient is subtracted from it.
    estimator = with_baseline(5.0, window=window, order="update_then_use")
    torch.testing.assert_close(
        expected_gradient(estimator, num_mask_samples),
        (1 - 1 / (window * num_mask_samples)) * exact_gradient(),
        atol=1e-10,
        rtol=0,
    )


def test_the_first_step_from_the_first_loss_is_shrunk():
    torch.testing.assert_close(
        expected_gradient(MovingAverageBaseline(), 2), exact_gradient() / 2, atol=1e-10, rtol=0
    )


@pytest.mark.parametrize("num_mask_samples", [1, 2])
@pytest.mark.parametrize("estimator", [PlainReinforce, MovingAverageBaseline])
def test_dividing_by_the_deviation_preconditions_the_gradient(estimator, num_mask_samples):
    # (m - s) / sqrt(s (1 - s)) is the score times sqrt(s (1 - s)), which no mask changes.
    options = {"score_scale": "standard_deviation"}
    if estimator is MovingAverageBaseline:
        options["start"] = "zero"
    torch.testing.assert_close(
        expected_gradient(estimator(**options), num_mask_samples),
        (S * (1 - S)).sqrt() * exact_gradient(),
        atol=1e-10,
        rtol=0,
    )


@pytest.mark.parametrize("num_mask_samples", [2, 3])
def test_dividing_by_one_sample_less_enlarges_the_gradient(num_mask_samples):
    # The sum over N_s terms, each of which has the gradient as its expectation.
    few = MASKS[:, :2].unique(dim=0)
    losses, s = LOSSES[: len(few)], S[:2]
    probabilities = torch.where(few, s, 1 - s).prod(dim=1)
    estimator = PlainReinforce(normalization="samples_minus_one")
    expected = sum(
        probabilities[list(rows)].prod()
        * estimator.estimate(mask_samples(losses[list(rows)], few[list(rows)], s))
        for rows in itertools.product(range(len(few)), repeat=num_mask_samples)
    )
    variable = s.clone().requires_grad_()
    expectation = torch.where(few, variable, 1 - variable).prod(dim=1) @ losses
    (exact,) = torch.autograd.grad(expectation, variable)
    factor = num_mask_samples / (num_mask_samples - 1)
    torch.testing.assert_close(expected, factor * exact, atol=1e-10, rtol=0)


@pytest.mark.parametrize("window", [1, 2, 5])
def test_the_authors_code_on_average(window):
    # Updating first shrinks by 1 - 1 / (T N_s), one sample less enlarges by N_s / (N_s - 1): with
    # T = 1 the two cancel, and the baseline is the mean of the step's own losses without a bias.
    estimator = with_baseline(
        5.0,
        window=window,
        order="update_then_use",
        score_scale="standard_deviation",
        normalization="samples_minus_one",
    )
    factor = 2 * (1 - 1 / (2 * window))
    torch.testing.assert_close(
        expected_gradient(estimator, 2),
        factor * (S * (1 - S)).sqrt() * exact_gradient(),
        atol=1e-10,
        rtol=0,
    )


@pytest.mark.parametrize("scale", ["variance", "standard_deviation"])
def test_scores_of_either_scale_are_these(scale):
    # At s = 0.2 a kept unit has (1 - s) / 0.16 or (1 - s) / 0.4; at a bound there is none.
    s = torch.tensor([0.2, 0.0, 1.0], dtype=torch.float64)
    masks = torch.tensor([[True, False, True], [False, False, True]])
    kept, dropped = PlainReinforce(score_scale=scale), PlainReinforce(score_scale=scale)
    divisor = {"variance": 0.16, "standard_deviation": 0.4}[scale]
    assert kept.estimate(mask_samples(torch.tensor([3.0]), masks[:1], s)).tolist() == pytest.approx(
        [3 * 0.8 / divisor, 0, 0]
    )
    assert dropped.estimate(
        mask_samples(torch.tensor([3.0]), masks[1:], s)
    ).tolist() == pytest.approx([-3 * 0.2 / divisor, 0, 0])


def test_one_sample_less_than_one_is_none():
    estimator = PlainReinforce(normalization="samples_minus_one")
    PlainReinforce().check_mask_samples(1)
    estimator.check_mask_samples(2)
    with pytest.raises(UserError, match=r"at least 2 .* given 1"):
        estimator.estimate(mask_samples(LOSSES[:1], MASKS[:1], S))


def test_a_good_baseline_lowers_the_variance():
    probabilities = torch.where(MASKS, S, 1 - S).prod(dim=1)

    def variance(estimator):
        rows = [
            copy.deepcopy(estimator).estimate(mask_samples(LOSSES[[i]], MASKS[[i]], S))
            for i in range(len(MASKS))
        ]
        return probabilities @ (torch.stack(rows) - exact_gradient()).square().sum(dim=1)

    assert variance(with_baseline(5.0)) < 0.2 * variance(PlainReinforce())


STEPS = [[4.0, 6.0], [3.0, 2.0], [1.0, 7.0]]


@pytest.mark.parametrize(
    ("options", "used", "after"),
    [
        ({}, [5.0, 5.0, 4.375], [5.0, 4.375, 4.28125]),
        ({"start": "zero"}, [0.0, 1.25, 1.5625], [1.25, 1.5625, 2.171875]),
        (
            {"start": "zero", "order": "update_then_use"},
            [1.25, 1.5625, 2.171875],
            [1.25, 1.5625, 2.171875],
        ),
        ({"order": "update_then_use"}, [5.0, 4.375, 4.28125], [5.0, 4.375, 4.28125]),
    ],
    ids=["default", "from zero", "algorithm 1", "authors' code"],
)
def test_the_baseline_follows_equation_8(options, used, after):
    estimator = MovingAverageBaseline(window=4, **options)
    # Both masks keep the unit at s = 0.5, where the score is 2: the gradient is 2 (mean - used).
    masks, s = torch.tensor([[True], [True]]), torch.tensor([0.5], dtype=torch.float64)
    for losses, baseline_used, baseline_after in zip(STEPS, used, after, strict=True):
        gradient = estimator.estimate(mask_samples(torch.tensor(losses), masks, s))
        assert gradient.item() == 2 * (sum(losses) / 2 - baseline_used)
        assert estimator.baseline.item() == baseline_after
    assert estimator.num_updates.item() == 3


def test_the_baseline_is_shared_between_ranks_and_the_gradient_is_not():
    together, alone = with_baseline(5.0), with_baseline(5.0)
    everyone = LOSSES[:6]
    samples = mask_samples(LOSSES[:2], MASKS[:2], S).among_ranks(lambda _: everyone)
    gradient = together.estimate(samples)
    assert gradient.equal(alone.estimate(mask_samples(LOSSES[:2], MASKS[:2], S)))
    torch.testing.assert_close(together.baseline, 0.8 * 5.0 + 0.2 * everyone.mean())


def test_state_round_trips_and_the_run_goes_on_alike():
    first, losses = MovingAverageBaseline(), LOSSES[:2]
    first.estimate(mask_samples(losses, MASKS[:2], S))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = MovingAverageBaseline()
    second.load_state_dict(torch.load(file, weights_only=True))
    for rows in ([2, 3], [4, 5]):
        gradients = [
            e.estimate(mask_samples(LOSSES[rows], MASKS[rows], S)) for e in (first, second)
        ]
        assert gradients[0].equal(gradients[1])
    assert second.baseline.equal(first.baseline)
    assert second.num_updates.item() == 3
    assert second.baseline.dtype == torch.float64


def test_plain_reinforce_learns_nothing():
    estimator = PlainReinforce()
    estimator.estimate(mask_samples(LOSSES[:2], MASKS[:2], S))
    assert estimator.baseline.item() == 0.0


def test_units_at_a_bound_have_no_gradient_and_spoil_no_other():
    s = torch.tensor([0.0, 1.0, 0.5, 0.5], dtype=torch.float64)
    masks = torch.tensor([[False, True, True, False], [False, True, False, False]])
    gradient = PlainReinforce().estimate(mask_samples(torch.tensor([3.0, 1.0]), masks, s))
    assert gradient.tolist() == [0.0, 0.0, 2.0, -4.0]
    assert gradient.dtype == torch.float64


@pytest.mark.parametrize("window", [0, -5])
def test_the_window_is_at_least_one_step(window):
    with pytest.raises(UserError, match="1 or more"):
        MovingAverageBaseline(window=window)
