"""The flat vector of units: where each lies and what it costs."""

import copy
import json
import sys

import pytest
import torch

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy import UnitGroup, UnitLayout


def test_build_computes_starts(space):
    assert [g.start for g in space.groups] == [0, 2, 8, 10, 14, 16]
    assert space.num_units == 22
    assert space.num_layers == 3
    assert space.kinds == ("kv_group", "mlp_channel")


def test_locate_finds_every_unit_in_its_group(space):
    places = [space.locate(unit) for unit in range(space.num_units)]
    assert places[:3] == [(0, "kv_group", 0), (0, "kv_group", 1), (0, "mlp_channel", 0)]
    assert len(set(places)) == space.num_units
    starts = [space.group(layer, kind).start for layer, kind, _ in places]
    units = [start + index for start, (_, _, index) in zip(starts, places, strict=True)]
    assert units == list(range(space.num_units))


@pytest.mark.parametrize("unit", [-1, 22])
def test_locate_refuses_units_that_do_not_exist(space, unit):
    with pytest.raises(AssertionError):
        space.locate(unit)


def test_group_names_what_there_is(space):
    with pytest.raises(UserError, match=r"layers 0 to 2 .* kv_group, mlp_channel"):
        space.group(3, "kv_group")


def test_view_slices_the_last_dimension(space):
    values = torch.arange(44).reshape(2, 22)
    assert space.view(values, 1, "mlp_channel").tolist() == [[10, 11, 12, 13], [32, 33, 34, 35]]
    assert space.view(values[0], 1, "mlp_channel").tolist() == [10, 11, 12, 13]


def test_unit_costs_are_those_of_the_groups(space):
    assert space.unit_costs_U.dtype == torch.float64
    assert (
        space.unit_costs_U.tolist()
        == [70.0] * 2 + [9.0] * 6 + [70.0] * 2 + [9.0] * 4 + [70.0] * 2 + [9.0] * 6
    )


def test_kept_parameters_without_pruning_is_the_whole_model(space):
    assert space.kept_parameters(torch.ones(22, dtype=torch.bool)) == 1000


def test_the_last_unit_of_a_group_takes_the_remnant_with_it(space):
    mask = torch.ones(22, dtype=torch.bool)
    mask[10:13] = False
    assert space.kept_parameters(mask) == 1000 - 3 * 9
    mask[13] = False
    assert space.kept_parameters(mask) == 1000 - 4 * 9 - 4
    mask[0] = False
    assert space.kept_parameters(mask) == 1000 - 4 * 9 - 4 - 70


def test_kept_by_kind_and_keep_ratio_by_layer(space):
    mask = torch.ones(22, dtype=torch.bool)
    mask[[0, 10, 11, 21]] = False
    assert space.kept_by_kind(mask) == {"kv_group": 5, "mlp_channel": 13}
    ratios = space.keep_ratio_by_layer(mask)
    assert ratios[0, "kv_group"] == 0.5
    assert ratios[1, "mlp_channel"] == 0.5
    assert ratios[2, "mlp_channel"] == 5 / 6
    assert space.keep_ratio_by_layer(mask * 0.25)[2, "kv_group"] == 0.25


def test_dict_round_trip_through_json(space):
    again = UnitLayout.from_dict(json.loads(json.dumps(space.to_dict())))
    assert again == space
    assert again.unit_costs_U.equal(space.unit_costs_U)


DAMAGES = {
    "no groups": lambda d: d.update(groups=[]),
    "groups gone": lambda d: d.pop("groups"),
    "groups not a list": lambda d: d.update(groups=3),
    "total gone": lambda d: d.pop("total_parameters"),
    "total a string": lambda d: d.update(total_parameters="1000"),
    "total too small": lambda d: d.update(total_parameters=10),
    "field gone": lambda d: d["groups"][0].pop("count"),
    "field unknown": lambda d: d["groups"][0].update(colour=1),
    "group not a dict": lambda d: d["groups"].__setitem__(0, 7),
    "gap": lambda d: d["groups"][1].update(start=3),
    "overlap": lambda d: d["groups"][1].update(start=1),
    "order": lambda d: d["groups"].reverse(),
    "count zero": lambda d: d["groups"][5].update(count=0),
    "count a float": lambda d: d["groups"][5].update(count=6.0),
    "cost zero": lambda d: d["groups"][5].update(unit_cost=0),
    "remnant negative": lambda d: d["groups"][5].update(remnant_cost=-1),
    "layer negative": lambda d: d["groups"][5].update(layer=-1),
    "kind unknown": lambda d: d["groups"][5].update(kind="neuron"),
    "kind a list": lambda d: d["groups"][5].update(kind=["layer"]),
    "group twice": lambda d: d["groups"][4].update(layer=1),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_from_dict_refuses_damaged_data(space, damage):
    data = copy.deepcopy(space.to_dict())
    damage(data)
    with pytest.raises(UserError, match="damaged"):
        UnitLayout.from_dict(data)


@pytest.mark.parametrize("data", [None, [], "groups", 5])
def test_from_dict_refuses_what_is_no_dict(data):
    with pytest.raises(UserError, match="damaged"):
        UnitLayout.from_dict(data)


def test_a_gap_is_refused_at_construction():
    groups = [UnitGroup(0, "layer", 0, 1, 10, 0), UnitGroup(1, "layer", 2, 1, 10, 0)]
    with pytest.raises(ValueError, match="should start at 1"):
        UnitLayout(groups, 100)


def test_ten_million_units_take_no_loop_over_units():
    sizes = [(layer, "mlp_channel", 100_000, 3, 1) for layer in range(100)]
    lines = 0

    def count(*_):
        nonlocal lines
        lines += 1
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        space = UnitLayout.build(sizes, total_parameters=40_000_000)
        mask = torch.ones(space.num_units, dtype=torch.bool)
        mask[::2] = False
        kept, place = space.kept_parameters(mask), space.locate(9_999_999)
        costs_U = space.unit_costs_U
    finally:
        sys.settrace(before)
    assert kept == 40_000_000 - 5_000_000 * 3
    assert place == (99, "mlp_channel", 99_999)
    assert len(costs_U) == 10_000_000
    assert lines < 100_000, "Python ran through more than the layers"
