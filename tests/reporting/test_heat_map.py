import re

import torch

from pgprune_lightning.reporting.heat_map import keep_probability_map
from pgprune_lightning.reporting.sparsity_chart import sparsity_chart
from tests.reporting.conftest import CHANNELS, HEADS, LAYERS, made_plan


def test_each_of_few_units_is_a_cell() -> None:
    plan = made_plan(0, 5, 9.0)
    drawn = keep_probability_map(plan, "kv_group")
    for layer in range(LAYERS):
        for unit in range(HEADS):
            index = plan.space.flat_index(layer, "kv_group", unit)
            s, kept = float(plan.keep_probabilities_U[index]), bool(plan.mask_U[index])
            said = f"layer {layer}, unit {unit}: {s:.3f}, {'kept' if kept else 'removed'}"
            (level,) = re.findall(rf'cell h(\d+)"><title>{re.escape(said)}<', drawn)
            assert int(level) == round(10 * s)
    kept_heads = plan.space.kept_by_kind(plan.mask_U)["kv_group"]
    assert drawn.count('class="kept"') == kept_heads


def test_many_units_are_a_distribution() -> None:
    plan = made_plan(1, 5, 9.0)
    drawn = keep_probability_map(plan, "mlp_channel")
    for layer in range(LAYERS):
        s_N = plan.space.view(plan.keep_probabilities_U, layer, "mlp_channel")
        in_bin = int(((s_N >= 0.35) & (s_N < 0.4)).sum())
        assert f"layer {layer}: {100 * in_bin / CHANNELS:.1f} % between 0.35 and 0.4<" in drawn
        shares = re.findall(rf"layer {layer}: ([\d.]+) % between", drawn)
        assert abs(sum(map(float, shares)) - 100) < 1
    assert len(keep_probability_map(plan, "mlp_channel", brief=True)) < 0.7 * len(drawn)


def test_probabilities_at_the_bounds_are_drawn() -> None:
    plan = made_plan(1, 5, 9.0)
    plan.keep_probabilities_U[: plan.space.num_units // 2] = 0.0
    plan.keep_probabilities_U[plan.space.num_units // 2 :] = 1.0
    drawn = keep_probability_map(plan, "mlp_channel")
    assert "layer 0: 100.0 % between 0 and 0.05" in drawn
    assert f"layer {LAYERS - 1}: 100.0 % between 0.95 and 1" in drawn


def test_bars_are_the_removed_shares() -> None:
    before, after = made_plan(0, 0, None), made_plan(1, 5, 9.0)
    drawn = sparsity_chart(after, "kv_group", before)
    heights = [float(h) for h in re.findall(r'height="([\d.]+)" class="f0"', drawn)]
    full = max(float(h) for h in re.findall(r'height="([\d.]+)" class="touch"', drawn))
    for layer in range(LAYERS):
        removed, first = (
            1 - float(plan.space.view(plan.mask_U, layer, "kv_group").double().mean())
            for plan in (after, before)
        )
        assert heights[layer] == torch.tensor(full * removed).round(decimals=1)
        said = f"layer {layer}: {100 * removed:.1f} % removed, {100 * first:.1f} % untrained"
        assert said in drawn
