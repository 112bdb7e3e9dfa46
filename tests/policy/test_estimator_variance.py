"""The exact variance of every estimator on the same losses, two masks a step."""

import pytest
import torch

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
from tests.exact_estimates import Toy, antithetic_draws, independent_draws, quadratic_toy

S = torch.tensor([0.4, 0.6, 0.8], dtype=torch.float64)
SPACE = UnitLayout.build([(0, "mlp_channel", 2, 3, 0), (1, "mlp_channel", 1, 3, 0)], 100)


def exact_variances(toy: Toy, num_texts: int) -> dict[str, float]:
    """Variance of the gradient, summed over the units, after 60 steps of the same policy."""
    estimators: dict[str, GradientEstimator] = {
        "plain": PlainReinforce(),
        "moving average": MovingAverageBaseline(),
        "leave-one-out": LeaveOneOut(),
        "antithetic": Antithetic(),
        "dense loss": DenseLossControlVariate(MovingAverageBaseline()),
        "surrogate": LinearSurrogate(MovingAverageBaseline()),
        "surrogate and dense loss": LinearSurrogate(
            DenseLossControlVariate(MovingAverageBaseline())
        ),
    }
    found = {}
    for name, estimator in estimators.items():
        if name == "antithetic" and num_texts > 1:
            continue
        estimator.prepare(SPACE, S)
        toy.train(estimator, 60, 2, num_texts)
        draws = antithetic_draws(S, 1) if name == "antithetic" else independent_draws(S, 2)
        found[name] = toy.moments(estimator, draws, num_texts)[1]
    return found


@pytest.mark.parametrize("s", [0.2, 0.5])
def test_the_variance_of_plain_reinforce_is_this(s: float) -> None:
    toy = Toy(
        torch.tensor([s], dtype=torch.float64),
        losses_XM=torch.tensor([[5.0, 3.0]], dtype=torch.float64),
        dense_X=torch.zeros(1, dtype=torch.float64),
    )
    _, variance = toy.moments(PlainReinforce(), independent_draws(toy.s_U, 1))
    assert variance == pytest.approx(9 / s + 25 / (1 - s) - 4, abs=1e-9)


def test_baselines_lower_it_and_the_surrogate_lowers_it_further() -> None:
    found = exact_variances(quadratic_toy(S), num_texts=1)
    assert found["moving average"] < 0.3 * found["plain"]
    # Half the difference of two masks is left of the baseline.
    assert found["moving average"] < found["leave-one-out"] < found["plain"]
    assert found["surrogate"] < 0.6 * found["moving average"]


def test_where_texts_differ_their_dense_loss_lowers_it() -> None:
    found = exact_variances(quadratic_toy(S, text_effect=2.0), num_texts=2)
    assert found["dense loss"] < 0.7 * found["moving average"]
    assert found["surrogate and dense loss"] < found["dense loss"]
