"""The projection onto equal widths.

Shapes: U units.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pgprune_lightning.errors import UserError
from pgprune_lightning.export import ExportOptions, layer_widths
from pgprune_lightning.export.export_record import check_export
from pgprune_lightning.export.formats import FORMATS
from pgprune_lightning.export.uniform import uniform_mask
from pgprune_lightning.export.widths import are_equal
from pgprune_lightning.masking import unit_layout_of
from pgprune_lightning.policy import scope_costs
from tests.tiny_exports import make_plan, prune
from tests.tiny_models import CONFIGS, make_tiny_model

BOTH = ["kv_group", "mlp_channel"]
OPTIONS = ExportOptions(torch.float32)


@pytest.mark.parametrize("scope", ["per_kind", "per_layer", "units", "parameters"])
@pytest.mark.parametrize("multiples", [{}, {"mlp_channel": 4}])
def test_the_best_units_of_each_layer_stay_within_the_budget(
    scope: Any, multiples: dict[Any, int]
) -> None:
    model = make_tiny_model("llama_mha")
    space = unit_layout_of(model, BOTH)
    plan = make_plan(space, keep_ratio=0.7, scope=scope)
    mask_U = uniform_mask(plan, plan.mask_U, multiples)
    widths = layer_widths(model.config, space, mask_U)
    assert are_equal(widths)
    assert widths[0].mlp_channels % multiples.get("mlp_channel", 1) == 0
    costs_U = scope_costs(space, scope)
    left = float(costs_U @ plan.mask_U.double()) - float(costs_U @ mask_U.double())
    assert left >= 0
    if scope in ("units", "parameters"):  # one more channel of each layer would not fit
        a_layer = multiples.get("mlp_channel", 1) * float(costs_U[space.units_of("mlp_channel")[0]])
        assert left < 3 * a_layer or widths[0].mlp_channels == 24
    for group in space.groups:
        s, kept = (
            plan.keep_probabilities_U[group.start : group.end],
            mask_U[group.start : group.end],
        )
        assert kept.all() or s[kept].min() >= s[~kept].max()


def test_every_layer_keeps_one_unit_at_least() -> None:
    space = unit_layout_of(make_tiny_model("llama_gqa"), BOTH)
    plan = make_plan(space, keep_ratio=0.2)  # one of six KV groups
    kept = uniform_mask(plan, plan.mask_U, {})
    assert space.kept_by_kind(kept)["kv_group"] == 3


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_has_a_stock_class(name: str, tmp_path: Path) -> None:
    model = make_tiny_model(name)
    heads_share = model.config.model_type in ("opt", "gpt_neox")
    space = unit_layout_of(model, ["mlp_channel"] if heads_share else BOTH)
    plan = make_plan(space, keep_ratio=0.6)
    pruned = prune(model, space, uniform_mask(plan, plan.mask_U, {}))
    FORMATS["uniform"].check(model.config, pruned.widths, OPTIONS)
    FORMATS["uniform"].write(pruned, tmp_path, OPTIONS)
    assert not (tmp_path / "modeling_pruned.py").exists()
    check = check_export(pruned, FORMATS["uniform"], tmp_path, OPTIONS)
    assert check.reloaded is not None
    assert check.reloaded < 1e-4


def test_heads_that_llama_refuses_go_to_its_twin(tmp_path: Path) -> None:
    """Three heads of 8 do not divide 32: the same computation has another class."""
    model = make_tiny_model("llama_mha")
    space = unit_layout_of(model, BOTH)
    mask_U = uniform_mask(plan := make_plan(space, keep_ratio=0.8), plan.mask_U, {})
    pruned = prune(model, space, mask_U)
    assert pruned.widths[0].query_heads == 3
    FORMATS["uniform"].write(pruned, tmp_path, OPTIONS)
    assert '"model_type": "mistral"' in (tmp_path / "config.json").read_text()
    check = check_export(pruned, FORMATS["uniform"], tmp_path, OPTIONS)
    assert check.reloaded is not None
    assert check.reloaded < 1e-4


def test_pairs_of_sub_layers_become_layers() -> None:
    model = make_tiny_model("llama_gqa")
    space = unit_layout_of(model, ["attention", "mlp"])
    mask_U = torch.tensor([True, True, False, True, True, False])
    plan = make_plan(space, mask_U)
    kept = uniform_mask(plan, mask_U, {})
    assert int(kept.sum()) == 4
    pairs = kept.reshape(3, 2)
    assert torch.equal(pairs[:, 0], pairs[:, 1])
    sums = (plan.keep_probabilities_U + 1e-9 * mask_U).reshape(3, 2).sum(dim=1)
    assert not pairs[int(sums.argmin()), 0]


@pytest.mark.parametrize(
    ("scope", "keep_ratio"),
    [("per_kind", 0.8), ("per_layer", 0.5), ("units", 0.8), ("parameters", 0.8)],
)
@pytest.mark.parametrize("protected", [[0], [-3, -1]])
def test_protected_layers_are_cut_as_the_others_within_the_budget(
    scope: Any, keep_ratio: float, protected: list[int], tmp_path: Path
) -> None:
    model = make_tiny_model("llama_mha")
    space = unit_layout_of(model, BOTH)
    plan = make_plan(space, keep_ratio=keep_ratio, scope=scope, protected_layers=protected)
    named = "0" if protected == [0] else "0, 2"
    with pytest.warns(UserWarning, match=f"uniform cuts the protected layers {named} as it does"):
        mask_U = FORMATS["uniform"].choose_mask(plan, plan.mask_U, {})
    assert are_equal(layer_widths(model.config, space, mask_U))
    costs_U = scope_costs(space, scope)
    assert float(costs_U @ mask_U.double()) <= keep_ratio * float(costs_U.sum())
    if scope == "per_layer":  # what each of the layers that are not protected keeps
        assert space.kept_by_kind(mask_U) == {"kv_group": 3 * 2, "mlp_channel": 3 * 12}
    pruned = prune(model, space, mask_U)
    FORMATS["uniform"].write(pruned, tmp_path, OPTIONS)
    check = check_export(pruned, FORMATS["uniform"], tmp_path, OPTIONS)
    assert check.reloaded is not None
    assert check.reloaded < 1e-4


def test_protected_pairs_of_sub_layers_stay() -> None:
    """A whole layer can stay as it is, however little the plan's probabilities say for it."""
    space = unit_layout_of(make_tiny_model("llama_gqa"), ["attention", "mlp"])
    plan = make_plan(space, torch.tensor([True] * 4 + [False] * 2), protected_layers=[1])
    plan.keep_probabilities_U[2:4] = 0
    pairs = uniform_mask(plan, plan.mask_U, {}).reshape(3, 2)
    assert pairs[1].all()
    assert int(pairs.sum()) == 4


def test_a_kind_of_sub_layer_alone_cannot_be_of_equal_widths() -> None:
    space = unit_layout_of(make_tiny_model("llama_gqa"), ["attention"])
    plan = make_plan(space, torch.ones(space.num_units, dtype=torch.bool))
    with pytest.raises(UserError, match="the plan drops attention as a whole"):
        uniform_mask(plan, plan.mask_U, {})


def test_uneven_widths_are_refused_with_layer_and_rule() -> None:
    model = make_tiny_model("llama_gqa")
    space = unit_layout_of(model, ["mlp_channel"])
    mask_U = torch.ones(space.num_units, dtype=torch.bool)
    mask_U[-1] = False
    widths = layer_widths(model.config, space, mask_U)
    with pytest.raises(UserError, match=r"layers 0 and 2 have different widths.*--format hf"):
        FORMATS["uniform"].check(model.config, widths, OPTIONS)
