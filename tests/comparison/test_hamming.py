"""Distances between masks over units of different kinds."""

import torch

from pgprune_lightning.comparison.results import (
    expanded_mask,
    hamming_by_layer,
    sparsity_by_layer,
)
from pgprune_lightning.plan import BaseModel, PruningPlan
from pgprune_lightning.policy import UnitKind, UnitLayout

LAYERS, GROUPS, CHANNELS = 3, 2, 6


def _space(*sizes: tuple[UnitKind, int]) -> UnitLayout:
    groups = [(layer, kind, count, 1, 0) for layer in range(LAYERS) for kind, count in sizes]
    return UnitLayout.build(groups, total_parameters=1000)


PARTS = _space(("kv_group", GROUPS), ("mlp_channel", CHANNELS))


def _plan(space: UnitLayout, *kept: int) -> PruningPlan:
    mask_U = torch.tensor(kept, dtype=torch.bool)
    assert len(mask_U) == space.num_units
    model = BaseModel("tiny", "llama", "0" * 64, 1000)
    return PruningPlan(model, space, mask_U.double(), mask_U, {}, 0)


def _by_layer(mask_A: torch.Tensor) -> list[list[int]]:
    return mask_A.int().view(LAYERS, GROUPS + CHANNELS).tolist()


def test_the_share_of_units_that_differ_counted_by_hand() -> None:
    one = torch.ones(PARTS.num_units, dtype=torch.bool)
    other = one.clone()
    other[[0, 3]] = False  # a KV group and a channel of layer 0
    other[2 * (GROUPS + CHANNELS) :] = False  # all of layer 2
    assert hamming_by_layer(one, other, PARTS) == [2 / 8, 0.0, 1.0]
    assert hamming_by_layer(other, one, PARTS) == [2 / 8, 0.0, 1.0]
    assert hamming_by_layer(other, other, PARTS) == [0.0, 0.0, 0.0]


def test_a_layer_goes_with_all_its_parts() -> None:
    mask_A = expanded_mask(_plan(_space(("layer", 1)), 1, 0, 1), PARTS)
    assert _by_layer(mask_A) == [[1] * 8, [0] * 8, [1] * 8]


def test_a_sublayer_goes_with_its_parts_alone() -> None:
    plan = _plan(_space(("attention", 1), ("mlp", 1)), 1, 1, 0, 1, 1, 0)
    assert _by_layer(expanded_mask(plan, PARTS)) == [
        [1] * 8,
        [0] * 2 + [1] * 6,
        [1] * 2 + [0] * 6,
    ]


def test_a_bundle_of_channels_goes_as_one_and_what_is_not_pruned_stays() -> None:
    plan = _plan(_space(("mlp_channel", 2)), 1, 0, 0, 1, 1, 1)
    assert _by_layer(expanded_mask(plan, PARTS)) == [
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0, 1, 1, 1],
        [1] * 8,
    ]


def test_parts_are_themselves() -> None:
    kept = [index % 3 != 0 for index in range(PARTS.num_units)]
    mask_A = expanded_mask(_plan(PARTS, *kept), PARTS)
    assert mask_A.tolist() == kept


def test_sparsity_is_the_share_removed_by_layer() -> None:
    plan = _plan(_space(("kv_group", 2), ("mlp", 1)), 1, 0, 1, 0, 0, 1, 1, 1, 0)
    assert sparsity_by_layer(plan) == {"kv_group": [0.5, 1.0, 0.0], "mlp": [0.0, 0.0, 1.0]}
