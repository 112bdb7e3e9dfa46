"""Budgets of every scope: what is feasible, what is cut, and which ones are refused."""

import pytest
import torch

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy import FeasibleSet, UnitLayout
from tests.policy.greedy_fit import greedy
from tests.policy_points import is_feasible

SCOPES = ("per_kind", "per_layer", "units", "parameters")


def random_point(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(22, generator=generator, dtype=torch.float64) * scale


@pytest.mark.parametrize(
    ("scope", "limits"),
    [
        ("per_kind", {"kv_group": 4, "mlp_channel": 11}),
        (
            "per_layer",
            {"kv_group in layer 0": 1, "mlp_channel in layer 0": 4, "mlp_channel in layer 1": 2},
        ),
        ("units", {"units": 15}),
        ("parameters", {"parameters": 394}),
    ],
)
def test_limits_of_each_scope(space, scope, limits):
    feasible = FeasibleSet(space, 0.7, scope=scope)
    assert limits.items() <= {c.name: c.limit for c in feasible.constraints}.items()
    together = torch.cat([c.units for c in feasible.constraints])
    assert together.sort().values.tolist() == list(range(22)), "each unit in one constraint"


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("keep_ratio", [0.55, 0.7, 1.0])
def test_many_masks_are_those_ranked_one_by_one(space, scope, keep_ratio):
    feasible = FeasibleSet(
        space, keep_ratio, scope=scope, protected_layers=() if scope == "per_layer" else (0,)
    )
    rows_SU = torch.stack([random_point(seed).round() for seed in range(5)])
    expected_SU = torch.stack([feasible.deterministic_mask(s_U) for s_U in rows_SU])
    assert torch.equal(feasible.deterministic_masks(rows_SU), expected_SU)


def test_a_limit_is_not_lowered_by_rounding():
    space = UnitLayout.build([(0, "mlp_channel", 100, 1, 0)], total_parameters=100)
    for percent in range(1, 101):
        (constraint,) = FeasibleSet(space, percent / 100).constraints
        assert constraint.limit == percent


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("protected", [(), (0,), (-1,)])
@pytest.mark.parametrize("scope", ["per_kind", "units", "parameters"])
def test_projection_is_feasible_and_protects(space, scope, protected, fill):
    feasible = FeasibleSet(
        space, 0.7, scope=scope, protected_layers=protected, lower=0.01, upper=0.99, fill=fill
    )
    for seed in range(5):
        s = feasible.project(random_point(seed, scale=3.0))
        assert is_feasible(feasible, s)
        for layer in protected:
            for kind in space.kinds:
                assert (space.view(s, layer % 3, kind) == 1).all()
        if fill:
            # Limits are whole units or parameters, so that a share may miss the ratio by one.
            per_unit = 1 / 22 if scope != "parameters" else 1 / 564
            assert 0.7 - 2 * per_unit <= feasible.expected_keep_ratio(s) <= 0.7 + 1e-12


def test_protected_units_count_in_the_budget(space):
    feasible = FeasibleSet(space, 0.7, scope="units", protected_layers=[-1])
    (constraint,) = feasible.constraints
    assert constraint.limit == 15 - 8
    assert constraint.units.tolist() == list(range(14))
    assert feasible.deterministic_mask(random_point(0)).sum() == 15


@pytest.mark.parametrize("keep_ratio", [0.5, 0.7])
def test_per_layer_leaves_protected_layers_out(space, keep_ratio):
    plain = FeasibleSet(space, keep_ratio, scope="per_layer")
    feasible = FeasibleSet(space, keep_ratio, scope="per_layer", protected_layers=[0, -1])
    names = ["kv_group in layer 1", "mlp_channel in layer 1"]
    assert [constraint.name for constraint in feasible.constraints] == names
    s = random_point(3)
    for vector, all_pruned in (
        (feasible.project(s), plain.project(s)),
        (feasible.deterministic_mask(s), plain.deterministic_mask(s)),
    ):
        for kind in space.kinds:
            assert space.view(vector, 1, kind).equal(space.view(all_pruned, 1, kind))
            for layer in (0, 2):
                assert (space.view(vector, layer, kind) == 1).all()
    assert is_feasible(feasible, feasible.project(s))
    assert not is_feasible(feasible, plain.project(s))


def test_a_protected_layer_needs_no_room_for_a_unit():
    space = UnitLayout.build([(0, "mlp_channel", 2, 1, 0), (1, "mlp_channel", 6, 1, 0)], 8)
    with pytest.raises(UserError, match="mlp_channel in layer 0"):
        FeasibleSet(space, 0.4, scope="per_layer")
    feasible = FeasibleSet(space, 0.4, scope="per_layer", protected_layers=[0])
    assert feasible.deterministic_mask(torch.zeros(8)).tolist() == [True] * 4 + [False] * 4


def test_contains_sees_each_violation(space):
    feasible = FeasibleSet(space, 0.7, protected_layers=[0], lower=0.1, upper=0.9, fill=True)
    s = feasible.project(random_point(0))
    assert is_feasible(feasible, s)
    index = int((s < 0.5).nonzero()[0])
    for unit, change in ((0, -1e-6), (index, 1e-6), (index, -1e-6), (index, float("nan"))):
        changed = s.clone()
        changed[unit] += change
        assert not is_feasible(feasible, changed)
    outside = s.clone()
    outside[[8, 9]] += torch.tensor([0.95, -0.95], dtype=torch.float64)
    assert not is_feasible(feasible, outside), "the sum is right and a bound is not"
    loose = FeasibleSet(space, 0.7)
    assert is_feasible(loose, torch.zeros(22))
    assert not is_feasible(FeasibleSet(space, 0.7, fill=True), torch.zeros(22))


@pytest.mark.parametrize("scope", ["per_kind", "per_layer", "units"])
@pytest.mark.parametrize("keep_ratio", [0.5, 0.7, 0.95, 1.0])
def test_mask_keeps_exactly_the_counted_budget(space, scope, keep_ratio):
    feasible = FeasibleSet(space, keep_ratio, scope=scope)
    for seed in range(5):
        s = feasible.project(random_point(seed))
        mask = feasible.deterministic_mask(s)
        assert mask.dtype == torch.bool
        for constraint in feasible.constraints:
            kept = mask[constraint.units]
            assert int(kept.sum()) == int(keep_ratio * len(kept) + 1e-9)
            if not kept.all():
                assert s[constraint.units][kept].min() >= s[constraint.units][~kept].max()


def test_ties_rank_by_flat_index(space):
    mask = FeasibleSet(space, 0.5, scope="units").deterministic_mask(torch.full((22,), 0.3))
    assert mask.tolist() == [True] * 11 + [False] * 11


@pytest.mark.parametrize("protected", [(), (0,)])
@pytest.mark.parametrize("keep_ratio", [0.45, 0.6, 0.7, 0.99, 1.0])
def test_parameter_mask_equals_a_greedy_loop(space, keep_ratio, protected):
    feasible = FeasibleSet(space, keep_ratio, scope="parameters", protected_layers=protected)
    (constraint,) = feasible.constraints
    for seed in range(10):
        # Rounded, so that some are equal.
        s = random_point(seed).sigmoid().mul(5).round() / 5
        mask = feasible.deterministic_mask(s)
        expected = greedy(s[constraint.units].tolist(), constraint.costs.tolist(), constraint.limit)
        assert mask[constraint.units].tolist() == expected
        kept = mask[constraint.units]
        left = constraint.limit - float(constraint.costs[kept].sum())
        assert left >= 0
        assert kept.all() or left < float(constraint.costs[~kept].min())
        for layer in protected:
            assert space.view(mask, layer, "kv_group").all()


def test_keep_ratio_one_keeps_everything(space):
    for scope in SCOPES:
        feasible = FeasibleSet(space, 1.0, scope=scope, upper=0.99, fill=True)
        s = feasible.project(random_point(0))
        assert (s == 1).all()
        assert feasible.deterministic_mask(s).all()
        assert feasible.expected_keep_ratio(s) == 1.0


def test_expected_keep_ratio_weighs_by_the_scope(space):
    s = torch.zeros(22, dtype=torch.float64)
    s[0] = 0.5
    assert FeasibleSet(space, 0.7, scope="units").expected_keep_ratio(s) == 0.5 / 22
    weighted = FeasibleSet(space, 0.7, scope="parameters").expected_keep_ratio(s)
    assert weighted == pytest.approx(35 / 564)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep_ratio": 0.0}, "above 0 and at most 1"),
        ({"keep_ratio": 1.01}, "above 0 and at most 1"),
        ({"keep_ratio": float("nan")}, "above 0 and at most 1"),
        ({"lower": 0.5, "upper": 0.5}, "lower < upper"),
        ({"lower": -0.1}, "0 <= lower"),
        ({"upper": 1.1}, "upper <= 1"),
        ({"keep_ratio": 0.1}, r"no unit of the budget 'kv_group'.*at least 0\.1667"),
        ({"keep_ratio": 0.4, "scope": "per_layer"}, r"'kv_group in layer 0'.*at least 0\.5"),
        ({"keep_ratio": 0.01, "scope": "parameters"}, r"no unit .*at least 0\.016"),
        ({"protected_layers": (3,)}, r"layer 3 does not exist.*0 to 2"),
        ({"protected_layers": (-4,)}, "layer -4 does not exist"),
        ({"protected_layers": (0, 1, 2)}, "Every layer is protected.*Protect fewer layers"),
        ({"protected_layers": (0, -2, 2), "scope": "per_layer"}, "Every layer is protected"),
        ({"protected_layers": (0, 2), "scope": "units"}, r"72\.7%.*at least 0\.7273"),
        ({"lower": 0.8, "scope": "units"}, r"lower bound of at most 0\.6818"),
    ],
)
def test_impossible_budgets_are_refused(space, arguments, message):
    with pytest.raises(UserError, match=message):
        FeasibleSet(space, **{"keep_ratio": 0.7, **arguments})


@pytest.mark.parametrize(
    "arguments",
    [
        {"keep_ratio": 0.1667},
        {"keep_ratio": 0.7273, "protected_layers": (0, 2), "scope": "units"},
        {"keep_ratio": 0.016, "scope": "parameters"},
        {"keep_ratio": 1.0, "protected_layers": (0, 1, 2)},
        {"keep_ratio": 0.7, "lower": 0.6818, "scope": "units"},
    ],
)
def test_what_an_error_suggests_works(space, arguments):
    feasible = FeasibleSet(space, **arguments)
    assert is_feasible(feasible, feasible.project(random_point(0)))
