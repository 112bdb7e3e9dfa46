"""Parameter-exploring policy gradients: whole masks of the budget, and the gradient from pairs.

Shapes: U units.
"""

import itertools
import math
from functools import partial

import pytest
import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy import PGPE, FeasibleSet, PGPEPolicy, UnitLayout
from tests.exact_estimates import all_masks, mask_samples
from tests.policy_points import is_feasible

SCOPES = ["per_kind", "per_layer", "units", "parameters"]


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def started(space, budget, make=PGPEPolicy, lr_factors=None, slope=1.5):
    policy = make()
    policy.prepare(space, lr_factors or {})
    policy.take_features(draw(len(policy.feature_names), space.num_units, seed=1), slope=slope)
    policy.start_from(torch.full((space.num_units,), 0.5, dtype=torch.float64), budget)
    return policy


def changed(policy, move, by):
    """How far the logits go when one mean does."""
    before_U = policy.ranking
    with torch.no_grad():
        policy.means[move] += by
    return policy.ranking - before_U


@pytest.mark.parametrize("scope", SCOPES)
def test_every_sample_is_a_mask_of_the_budget(space, scope):
    protected = () if scope == "per_layer" else (0,)
    budget = FeasibleSet(space, 0.6, scope=scope, protected_layers=protected)
    policy = started(space, budget)
    masks_SU = policy.explored_masks(3 * draw(20, len(policy.means)))
    assert len({tuple(mask_U.tolist()) for mask_U in masks_SU}) > 5
    for mask_U in masks_SU:
        assert is_feasible(budget, mask_U.double())
        if protected:
            assert mask_U[:8].all()


def test_without_a_move_it_is_the_mask_of_the_metric(space):
    budget = FeasibleSet(space, 0.6, scope="parameters")
    policy = started(space, budget)
    (mask_U,) = policy.explored_masks(torch.zeros(1, len(policy.means), dtype=torch.float64))
    assert torch.equal(mask_U, budget.deterministic_mask(draw(1, 22, seed=1)[0]))
    torch.testing.assert_close(policy.ranking, 1.5 * draw(1, 22, seed=1)[0])


def test_each_move_moves_its_units_by_its_width(space):
    make = partial(PGPEPolicy, ["flap"], offset_width=0.5, slope_width=0.3, own_width=0.7)
    policy = started(space, FeasibleSet(space, 0.6), make)
    groups = space.groups
    assert len(policy.means) == 3 * len(groups) + len(space.units_of("kv_group"))
    for index, group in enumerate(groups):
        here_U = torch.zeros(space.num_units, dtype=torch.bool)
        here_U[group.start : group.end] = True
        offset_U = changed(policy, index, 2.0)
        torch.testing.assert_close(offset_U, torch.where(here_U, 1.0, 0.0).double())
        for feature in (0, 1):
            slope_U = changed(policy, (1 + feature) * len(groups) + index, 1.0)
            values = draw(2, 22, seed=1)[feature][here_U]
            scaled = (values - values.mean()) / values.std(correction=0)
            torch.testing.assert_close(slope_U[here_U], 0.3 * scaled)
            assert (slope_U[~here_U] == 0).all()
    for order, unit in enumerate(space.units_of("kv_group").tolist()):
        own_U = changed(policy, 3 * len(groups) + order, 1.0)
        assert own_U.nonzero().tolist() == [[unit]]
        assert float(own_U[unit]) == pytest.approx(0.7)


def test_kv_groups_move_by_themselves_only_where_they_are_pruned(space):
    of_channels = UnitLayout.build(
        [(layer, "mlp_channel", 4, 9, 4) for layer in range(2)], total_parameters=200
    )
    policy = started(of_channels, FeasibleSet(of_channels, 0.5))
    assert len(policy.means) == 2 * 2  # an offset and a slope for each layer
    assert len(started(space, FeasibleSet(space, 0.6)).means) == 2 * len(space.groups) + 6


def test_equal_values_of_a_metric_have_no_slope(space):
    policy = PGPEPolicy(own_kinds=[])
    policy.prepare(space, {})
    policy.take_features(torch.full((1, 22), 3.0, dtype=torch.float64), slope=1.0)
    assert (policy.widths_RU[1] == 0).all()
    assert (policy.widths_RU[-1] == 0).all()


def test_the_probabilities_are_about_how_often_samples_keep_a_unit(space):
    """About: the top of the budget moves with the sample, which the probabilities leave out."""
    budget = FeasibleSet(space, 0.6, scope="units", fill=True)
    policy = started(space, budget, slope=0.5)
    masks_SU = policy.explored_masks(draw(4000, len(policy.means)))
    kept_U, s_U = masks_SU.double().mean(dim=0), policy.keep_probabilities
    assert is_feasible(budget, s_U)
    assert float((kept_U - s_U).abs().mean()) < 0.06
    assert torch.corrcoef(torch.stack([kept_U, s_U]))[0, 1] > 0.98


def test_a_falling_budget_is_followed(space):
    policy = started(space, FeasibleSet(space, 0.8))
    narrow = FeasibleSet(space, 0.4)
    policy.project(narrow, 1)
    for mask_U in policy.explored_masks(draw(5, len(policy.means))):
        assert is_feasible(narrow, mask_U.double())


def test_factors_reach_the_moves_of_their_kind(space):
    factors = {"mlp_channel": 0.1, "kv_group": 3.0}
    policy = started(space, FeasibleSet(space, 0.6), lr_factors=factors)
    (factors_P,) = policy.step_factors()
    assert factors_P.tolist() == [3.0, 0.1] * 6 + [3.0] * 6


def test_a_restored_policy_draws_the_same_masks(space):
    budget = FeasibleSet(space, 0.6)
    policy, restored = started(space, budget), PGPEPolicy()
    changed(policy, 0, 1.0)
    policy.project(budget, 1)
    restored.prepare(space, {})
    restored.start_from(torch.full((22,), 0.5, dtype=torch.float64), budget)
    restored.load_state_dict(policy.state_dict())
    moves_SP = draw(5, len(policy.means))
    assert torch.equal(restored.explored_masks(moves_SP), policy.explored_masks(moves_SP))
    assert torch.equal(restored.ranking, policy.ranking)


@pytest.mark.parametrize("name", ["offset_width", "slope_width", "own_width"])
@pytest.mark.parametrize("width", [0.0, -1.0, float("inf"), float("nan")])
def test_a_wrong_width_is_refused(name, width):
    with pytest.raises(UserError, match=name):
        PGPEPolicy(**{name: width})


def test_what_it_cannot_hold_is_refused(space):
    with pytest.raises(UserError, match="own_kinds: layer"):
        started(space, FeasibleSet(space, 0.6), partial(PGPEPolicy, own_kinds=["layer"]))
    with pytest.raises(UserError, match="cannot hold layer_keep_ratios"):
        started(space, FeasibleSet(space, 0.5, layer_keep_ratios=(0.2, 0.9)))


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


def exploring() -> PGPE:
    estimator = PGPE()
    estimator.explore(len(MEANS), masks_of)
    return estimator


def estimate(move_U: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    estimator = exploring()
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
    estimator = exploring()
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
        PGPE().check_mask_samples(masks)
