"""The linear surrogate: never a bias, a regression on the past, and less variance."""

import io

import pytest
import torch

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy import (
    Antithetic,
    DenseLossControlVariate,
    GradientEstimator,
    LeaveOneOut,
    LinearSurrogate,
    MovingAverageBaseline,
    PlainReinforce,
    UnitLayout,
)
from pgprune_lightning.policy.control_variates import kept_unit_features
from tests.exact_estimates import antithetic_draws, independent_draws, quadratic_toy

SPACE = UnitLayout.build([(0, "kv_group", 1, 7, 0), (0, "mlp_channel", 2, 3, 0)], 100)
START = torch.tensor([0.6, 0.3, 0.8], dtype=torch.float64)
S = torch.tensor([0.5, 0.2, 0.7], dtype=torch.float64)
"""The policy has moved since the features were made."""
TOY = quadratic_toy(S, text_effect=0.5)


def prepared(estimator: GradientEstimator, **options: float) -> LinearSurrogate:
    made = LinearSurrogate(estimator, **options)
    made.prepare(SPACE, START)
    return made


def fitted(estimator: GradientEstimator, **options: float) -> LinearSurrogate:
    made = prepared(estimator, **options)
    TOY.train(made, 40, num_masks=4, num_texts=2)
    assert float(made.moment_F.abs().max()) > 1
    return made


@pytest.mark.parametrize(
    "inner",
    [
        PlainReinforce(),
        LeaveOneOut(),
        MovingAverageBaseline(),
        DenseLossControlVariate(LeaveOneOut()),
    ],
    ids=["plain", "leave-one-out", "moving average", "dense loss of leave-one-out"],
)
@pytest.mark.parametrize("num_texts", [1, 2])
def test_the_expectation_stays(inner: GradientEstimator, num_texts: int) -> None:
    mean_U, _ = TOY.moments(fitted(inner), independent_draws(S, 2), num_texts)
    torch.testing.assert_close(mean_U, TOY.gradient(), atol=1e-10, rtol=0)


def test_the_expectation_of_opposite_masks_stays() -> None:
    mean_U, _ = TOY.moments(fitted(Antithetic()), antithetic_draws(S, 1))
    torch.testing.assert_close(mean_U, TOY.gradient(), atol=1e-10, rtol=0)


def test_any_fit_will_do() -> None:
    estimator = prepared(PlainReinforce())
    estimator.gram_FF.copy_(torch.eye(4))
    estimator.moment_F.copy_(torch.tensor([30.0, -20.0, 10.0, 50.0]))
    mean_U, _ = TOY.moments(estimator, independent_draws(S, 1))
    torch.testing.assert_close(mean_U, TOY.gradient(), atol=1e-9, rtol=0)


def test_the_fit_is_the_weighted_ridge_regression_of_past_steps() -> None:
    estimator = prepared(PlainReinforce(), forgetting=0.5, ridge=0.25)
    generator = torch.Generator().manual_seed(0)
    designs, targets, level = [], [], 0.0
    for step in range(3):
        samples = TOY.samples(estimator.draw(S, 4, generator), (0,))
        loadings_U2, deviations_SU = estimator.loadings_U2.double(), samples.masks_SU.double() - S
        features_SF = kept_unit_features(SPACE, loadings_U2, deviations_SU)
        rest = float((samples.losses_S - features_SF @ estimator._coefficients()).mean())
        level = rest if step == 0 else level
        root = 0.5 ** ((2 - step) / 2)
        designs.append(root * features_SF)
        targets.append(root * (samples.losses_S - level))
        level += (rest - level) / 5
        estimator.estimate(samples)
    # A ridge is four more rows, of the root of the penalty: 0.25 samples for each of 4 features.
    design = torch.cat([*designs, torch.eye(4, dtype=torch.float64)])
    target = torch.cat([*targets, torch.zeros(4, dtype=torch.float64)])
    expected_F = torch.linalg.lstsq(design, target[:, None], driver="gelsd").solution[:, 0]
    torch.testing.assert_close(estimator._coefficients(), expected_F, atol=1e-10, rtol=0)


def test_a_loss_that_is_linear_in_the_features_has_no_variance_left() -> None:
    # Two channels, one head: counts and weighted counts span every linear loss.
    weights_U = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    toy = quadratic_toy(S, loss=lambda dropped_MU: dropped_MU @ weights_U)
    estimator = prepared(LeaveOneOut(), ridge=1e-9, forgetting=0.9)
    toy.train(estimator, 200, num_masks=4)
    mean_U, variance = toy.moments(estimator, independent_draws(S, 2))
    torch.testing.assert_close(mean_U, -weights_U, atol=1e-6, rtol=0)
    _, plain = toy.moments(LeaveOneOut(), independent_draws(S, 2))
    assert variance < 1e-6 * plain


def test_it_lowers_the_variance_of_every_estimator() -> None:
    toy = quadratic_toy(S)
    for inner, draws in (
        (LeaveOneOut(), independent_draws(S, 2)),
        (MovingAverageBaseline(), independent_draws(S, 2)),
        (Antithetic(), antithetic_draws(S, 1)),
    ):
        wrapped = prepared(inner)
        toy.train(wrapped, 60, num_masks=4)
        assert toy.moments(wrapped, draws)[1] < 0.7 * toy.moments(inner, draws)[1], inner


def test_the_first_step_is_that_of_the_wrapped_one() -> None:
    samples = TOY.samples(torch.tensor([[True, False, True], [False, True, True]]), (0,))
    estimator = prepared(LeaveOneOut())
    torch.testing.assert_close(estimator.estimate(samples), LeaveOneOut().estimate(samples))


def test_units_at_a_bound_have_no_gradient() -> None:
    estimator = fitted(LeaveOneOut())
    toy = quadratic_toy(torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64))
    gradient_U = estimator.estimate(
        toy.samples(torch.tensor([[False, True, True], [False, True, False]]), (0,))
    )
    assert gradient_U[:2].tolist() == [0.0, 0.0]
    assert float(gradient_U[2]) != 0.0


def test_state_round_trips_into_one_prepared_otherwise() -> None:
    """A resumed run does not know what the first one started from."""
    first = fitted(DenseLossControlVariate(MovingAverageBaseline()))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = LinearSurrogate(DenseLossControlVariate(MovingAverageBaseline()))
    second.prepare(SPACE, torch.full_like(START, 0.5))
    second.load_state_dict(torch.load(file, weights_only=True))
    masks_SU = torch.tensor([[True, False, True], [False, True, True]])
    for texts in ((0, 1), (1, 1), (1, 0)):
        samples = TOY.samples(masks_SU, texts)
        assert first.estimate(samples).equal(second.estimate(samples))
    assert all(a.equal(b) for a, b in zip(first.buffers(), second.buffers(), strict=True))


def test_ranks_learn_the_same() -> None:
    masks_SU = torch.tensor([[True, False, True], [False, True, True]])
    parts = [TOY.samples(masks_SU, (0,)), TOY.samples(~masks_SU, (1,))]
    # The test stands in for the other rank: what it would send, in the order of the calls.
    alone = prepared(PlainReinforce())
    alone.estimate(TOY.samples(torch.cat([masks_SU, ~masks_SU]), (0, 1)))
    elsewhere = kept_unit_features(SPACE, alone.loadings_U2.double(), (~masks_SU).double() - S)
    sent = iter([parts[1].losses_S, elsewhere])
    shared = prepared(PlainReinforce())
    shared.estimate(parts[0].among_ranks(lambda values: torch.cat([values, next(sent)])))
    torch.testing.assert_close(shared.gram_FF, alone.gram_FF)
    torch.testing.assert_close(shared.moment_F, alone.moment_F)
    torch.testing.assert_close(shared.level, alone.level)


def test_the_dense_losses_are_asked_for_by_what_is_inside() -> None:
    assert not LinearSurrogate(LeaveOneOut()).needs_dense_losses
    assert LinearSurrogate(DenseLossControlVariate(LeaveOneOut())).needs_dense_losses


def test_what_is_inside_draws_and_refuses() -> None:
    masks_SU = LinearSurrogate(Antithetic()).draw(
        torch.full((50,), 0.5, dtype=torch.float64), 2, torch.Generator().manual_seed(0)
    )
    assert masks_SU[0].equal(~masks_SU[1])
    with pytest.raises(UserError, match="even number"):
        LinearSurrogate(Antithetic()).check_mask_samples(3)


@pytest.mark.parametrize(
    ("inner", "options", "message"),
    [
        (PlainReinforce(), {"ridge": 0.0}, "ridge: must be above 0"),
        (PlainReinforce(), {"forgetting": 0.0}, "forgetting"),
        (PlainReinforce("standard_deviation"), {}, "score_scale"),
        (
            DenseLossControlVariate(PlainReinforce(normalization="samples_minus_one")),
            {},
            "normalization",
        ),
    ],
)
def test_wrong_options_are_refused(
    inner: GradientEstimator, options: dict[str, float], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        LinearSurrogate(inner, **options)
