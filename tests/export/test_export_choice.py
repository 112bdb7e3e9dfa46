"""Masks of an export: another keep ratio, multiples, and what breaks a rule.

Shapes: U units.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from pgprune_lightning.errors import UserError
from pgprune_lightning.export import ExportOptions
from pgprune_lightning.export.export_choice import MaskOptions, choose_exports
from pgprune_lightning.export.formats import FORMATS
from pgprune_lightning.masking import unit_layout_of
from pgprune_lightning.policy import FeasibleSet
from tests.tiny_exports import make_plan
from tests.tiny_models import make_tiny_model

MODEL = "llama_gqa"
BOTH: Any = ["kv_group", "mlp_channel"]


def choose(plan: Any, **masks: Any) -> Any:
    config = make_tiny_model(MODEL).config
    options = ExportOptions(torch.float32)
    return choose_exports(plan, config, FORMATS["hf"], MaskOptions(**masks), options)


def test_the_plan_s_own_mask_is_not_made_anew() -> None:
    space = unit_layout_of(make_tiny_model(MODEL), BOTH)
    odd_U = torch.ones(space.num_units, dtype=torch.bool)
    odd_U[3] = False
    for masks in ({}, {"keep_ratios": (0.5,)}):
        (choice,) = choose(make_plan(space, odd_U), **masks)
        assert torch.equal(choice.mask_U, odd_U)
    assert choice.folder_name == "keep50"


@pytest.mark.parametrize("scope", ["per_kind", "per_layer", "units", "parameters"])
def test_other_ratios_are_cut_under_the_same_budget(scope: Any) -> None:
    space = unit_layout_of(make_tiny_model(MODEL), BOTH)
    options: dict[str, Any] = {"scope": scope, "protected_layers": [1]}
    plan = make_plan(space, keep_ratio=0.8, **options)
    first, second = choose(plan, keep_ratios=(0.9, 0.55))
    for choice, keep_ratio in ((first, 0.9), (second, 0.55)):
        expected = FeasibleSet(space, keep_ratio, **options)
        assert torch.equal(choice.mask_U, expected.deterministic_mask(plan.keep_probabilities_U))
        assert choice.widths[1].sizes == (4, 2, 24)


def test_equal_probabilities_are_ranked_by_the_plan() -> None:
    space = unit_layout_of(make_tiny_model(MODEL), ["mlp_channel"])
    last_U = torch.zeros(space.num_units, dtype=torch.bool)
    last_U[-36:] = True
    plan = replace(
        make_plan(space, last_U),
        keep_probabilities_U=torch.full((space.num_units,), 0.5, dtype=torch.float64),
    )
    (choice,) = choose(plan, keep_ratios=(0.25,))
    assert int(choice.mask_U.sum()) == 18
    assert bool((choice.mask_U <= last_U).all())


def test_multiples_hold_in_every_layer() -> None:
    space = unit_layout_of(make_tiny_model(MODEL), BOTH, 4)
    for choice in choose(
        make_plan(space, keep_ratio=0.8), keep_ratios=(0.8, 0.6), round_to=8, tensor_parallel=2
    ):
        assert {layer.kv_groups for layer in choice.widths} <= {0, 2}
        assert {layer.mlp_channels for layer in choice.widths} <= {0, 8, 16, 24}


def test_multiples_of_the_run_are_kept() -> None:
    space = unit_layout_of(make_tiny_model(MODEL), BOTH)
    plan = make_plan(space, keep_ratio=0.8, round_to=8)
    (choice,) = choose(plan, keep_ratios=(0.6,))
    assert {layer.mlp_channels for layer in choice.widths} <= {0, 8, 16, 24}
    (free,) = choose(plan, keep_ratios=(0.6,), round_to=1)
    assert not {layer.mlp_channels for layer in free.widths} <= {0, 8, 16, 24}


@pytest.mark.parametrize(
    ("kinds", "masks", "message"),
    [
        (["mlp_channel"], {"tensor_parallel": 4}, "layer 0 has 2 KV groups.*not pruned"),
        (["kv_group"], {"round_to": 5}, "layer 0 has 24 MLP channels, no multiple of 5"),
        (BOTH, {"round_to": 0}, "round_to: must be at least 1"),
        (BOTH, {"keep_ratios": (0.01,)}, "keeps no unit"),
        (BOTH, {"round_to": 96}, "96 units of mlp_channel stay together, but layer 0 has only 24"),
    ],
)
def test_what_cannot_be(kinds: Any, masks: dict[str, Any], message: str) -> None:
    plan = make_plan(unit_layout_of(make_tiny_model(MODEL), kinds))
    with pytest.raises(UserError, match=message):
        choose(plan, **masks)


def test_a_model_without_layers_is_refused() -> None:
    space = unit_layout_of(make_tiny_model(MODEL), ["layer"])
    with pytest.raises(UserError, match="leaves no layer"):
        choose(make_plan(space, torch.zeros(3, dtype=torch.bool)))
