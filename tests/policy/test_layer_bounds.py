"""Layer bounds: how ratios become whole units, what they leave alone, and which are refused."""

import pytest
import torch

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy import FeasibleSet, UnitLayout, shift_logits
from pgprune_lightning.policy.budget import bound_groups
from tests.policy_points import SCOPES, is_feasible, random_points


def rounded(counts, ratios, share):
    """The bounds at unit costs, with a limit rounded down to whole units."""
    costs, limit = [1.0] * len(counts), int(share * sum(counts) + 1e-9)
    groups = bound_groups("heads", counts, costs, ratios, limit=limit, share=share)
    return [(group.least, group.most) for group in groups]


@pytest.mark.parametrize("scope", SCOPES)
def test_bounds_that_allow_everything_change_nothing(space, scope):
    free = FeasibleSet(space, 0.7, scope=scope, lower=0.01, upper=0.99)
    bounded = FeasibleSet(space, 0.7, scope=scope, lower=0.01, upper=0.99, layer_keep_ratios=(0, 1))
    assert not any(constraint.groups for constraint in bounded.constraints)
    for z in random_points(3):
        assert bounded.project(z).equal(free.project(z))
        assert bounded.deterministic_mask(z).equal(free.deterministic_mask(z))


def test_bounds_that_bind_nowhere_give_the_free_point(space):
    free = FeasibleSet(space, 0.7, scope="units")
    loose = FeasibleSet(space, 0.7, scope="units", layer_keep_ratios=(1e-9, 1.0))
    for z in random_points(5).mul(0.03).add(0.6):
        assert loose.project(z).equal(free.project(z))


def test_the_dtype_is_kept(space):
    s = FeasibleSet(space, 0.7, layer_keep_ratios=(0.5, 1.0)).project(random_points(1)[0].float())
    assert s.dtype == torch.float32


def test_protected_layers_lie_outside_the_bounds(space):
    feasible = FeasibleSet(
        space, 0.75, scope="units", protected_layers=[0], layer_keep_ratios=(0.5, 0.75)
    )
    for z in random_points(5, scale=3.0):
        s, mask = feasible.project(z), feasible.deterministic_mask(z)
        assert is_feasible(feasible, s)
        for values in (s, mask.double()):
            ratios = space.keep_ratio_by_layer(values)
            assert ratios.pop((0, "kv_group")) == ratios.pop((0, "mlp_channel")) == 1
            # 2, 4 and 6 units: half of them are whole, 0.75 of 2 and 6 are rounded.
            assert all(0.5 - 1e-9 <= ratio <= 0.75 + 1e-9 for ratio in ratios.values())


def test_contains_sees_a_group_out_of_bounds(space):
    bounded = FeasibleSet(space, 0.7, scope="units", layer_keep_ratios=(0.5, 0.9))
    s = torch.full((22,), 0.6, dtype=torch.float64)
    s[space.units_of("kv_group")] = 0.5  # 1 of 2, which is all that 0.9 allows
    assert is_feasible(bounded, s)
    for value in (0.4, 0.95):
        changed = s.clone()
        space.view(changed, 1, "mlp_channel").fill_(value)
        assert not is_feasible(bounded, changed)
        assert is_feasible(FeasibleSet(space, 0.7, scope="units"), changed)


@pytest.mark.parametrize("scope", SCOPES)
def test_shifted_logits_are_made_feasible_by_the_projection(space, scope):
    feasible = FeasibleSet(space, 0.7, scope=scope, fill=True, layer_keep_ratios=(0.5, 0.9))
    free = FeasibleSet(space, 0.7, scope=scope, fill=True)
    for x in random_points(3, scale=5.0):
        assert shift_logits(x, feasible).equal(shift_logits(x, free))
        s = feasible.project(shift_logits(x, feasible).sigmoid())
        assert is_feasible(feasible, s)


def test_every_budget_can_be_both_bounds():
    """Of 11,008 channels no whole number is 0.7; one more or less is then allowed."""
    sizes = [(layer, "mlp_channel", 11008, 1, 0) for layer in range(8)]
    space = UnitLayout.build(sizes, total_parameters=8 * 11008)
    for percent in range(1, 101):
        ratio = percent / 100
        for scope in ("per_kind", "per_layer"):
            feasible = FeasibleSet(space, ratio, scope=scope, layer_keep_ratios=(ratio, ratio))
            for constraint in feasible.constraints:
                for group in constraint.groups:
                    assert 0 <= group.most - group.least <= 1
                    assert abs(group.most - ratio * group.count) < 1
                    assert abs(group.least - ratio * group.count) < 1
                costs = sum(g.least for g in constraint.groups)
                assert costs <= constraint.limit <= sum(g.most for g in constraint.groups)


def test_ratios_are_rounded_inwards():
    # 0.58 of 100 is 58, although the product is 57.99999999999999.
    assert rounded([100], (0.58, 0.831), 0.7) == [(58, 83)]
    assert rounded([100], (0.581, 0.58 + 0.25), 0.7) == [(59, 83)]
    assert rounded([2, 2, 3, 6], (0.4, 0.75), 0.6) == [(1, 1), (1, 1), (2, 2), (3, 4)]


def test_no_whole_number_between_the_ratios_means_either_neighbour():
    assert rounded([6, 10, 7], (0.7, 0.7), 0.7) == [(4, 5), (7, 7), (4, 5)]
    assert rounded([6, 100], (0.7, 0.75), 0.74) == [(4, 5), (70, 75)]


def test_rounded_bounds_give_way_to_the_budget_and_no_further():
    # 2 of 3 each is 0.67 at most, and 63 of 90 are to be kept: 3 in some layers.
    assert rounded([3] * 30, (0.5, 0.9), 0.7) == [(2, 3)] * 30
    assert rounded([3] * 30, (0.5, 0.9), 0.66) == [(1, 2)] * 30
    assert rounded([3] * 30, (0.2, 0.9), 0.66) == [(1, 2)] * 30
    assert rounded([3] * 30, (0.0, 0.9), 2 / 3) == [(0, 2)] * 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer_keep_ratios": (0.8, 0.3)}, "0 <= minimum <= maximum <= 1, given"),
        ({"layer_keep_ratios": (-0.1, 0.9)}, "0 <= minimum"),
        ({"layer_keep_ratios": (0.3, float("nan"))}, "0 <= minimum"),
        ({"layer_keep_ratios": (0.75, 1.0)}, r"'kv_group'.*70\.00%.*minimum of at most 0\.7 "),
        ({"layer_keep_ratios": (0.0, 0.65)}, r"maximum of at least 0\.7,"),
        (
            {"layer_keep_ratios": (0.6, 1.0), "protected_layers": [0], "scope": "units"},
            r"'units'.*52\.86%.*minimum of at most 0\.5285",
        ),
        (
            {"layer_keep_ratios": (0.5, 0.9), "lower": 0.55, "scope": "units"},
            r"lower bound 0\.55.*'units'.*at most 0\.5\.",
        ),
    ],
)
def test_impossible_bounds_are_refused(space, arguments, message):
    with pytest.raises(UserError, match=message):
        FeasibleSet(space, 0.7, **arguments)


def test_a_lower_bound_beside_the_minima_may_exceed_the_budget():
    sizes = [(layer, "mlp_channel", count, 1, 0) for layer, count in enumerate([2, 2, 3])]
    space = UnitLayout.build(sizes, total_parameters=7)
    # 4 of 7: the minima are 1, 1 and 2 units, and 0.55 of 2 is more than one.
    with pytest.raises(UserError, match=r"lower bound 0\.55.*at most 0\.5\."):
        FeasibleSet(space, 0.7, lower=0.55, layer_keep_ratios=(0.5, 1.0))
    feasible = FeasibleSet(space, 0.7, lower=0.5, layer_keep_ratios=(0.5, 1.0))
    assert is_feasible(feasible, feasible.project(torch.zeros(7, dtype=torch.float64)))


@pytest.mark.parametrize(
    ("keep_ratio", "upper", "ratios"), [(0.9, 0.95, (0.6, 1.0)), (0.75, 0.8, (0.0, 0.9))]
)
def test_an_upper_bound_that_leaves_no_room_is_lifted(space, keep_ratio, upper, ratios):
    """Both units of a KV group at the minimum, or one in each and all that is left elsewhere."""
    feasible = FeasibleSet(
        space, keep_ratio, scope="units", upper=upper, fill=True, layer_keep_ratios=ratios
    )
    (free,) = FeasibleSet(space, keep_ratio, scope="units", upper=upper).constraints
    (constraint,) = feasible.constraints
    assert (free.upper, constraint.upper) == (upper, 1.0)
    for z in random_points(3):
        assert is_feasible(feasible, feasible.project(z))


@pytest.mark.parametrize(
    "arguments",
    [
        {"layer_keep_ratios": (0.7, 0.7)},
        {"layer_keep_ratios": (0.5285, 1.0), "protected_layers": [0], "scope": "units"},
        {"layer_keep_ratios": (0.5, 0.9), "lower": 0.5, "scope": "units"},
    ],
)
def test_what_an_error_suggests_works(space, arguments):
    feasible = FeasibleSet(space, 0.7, **arguments)
    assert is_feasible(feasible, feasible.project(random_points(1)[0]))


@pytest.mark.parametrize("kind", ["layer", "attention", "mlp", "mlp_channel"])
def test_a_unit_that_is_alone_in_its_layer_has_no_ratio(kind):
    space = UnitLayout.build([(layer, kind, 1, 5, 0) for layer in range(4)], total_parameters=20)
    assert FeasibleSet(space, 0.5, layer_keep_ratios=(0.0, 1.0)).constraints
    with pytest.raises(UserError, match="one unit alone"):
        FeasibleSet(space, 0.5, layer_keep_ratios=(0.25, 0.75))
