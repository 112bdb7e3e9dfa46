from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pgprune_lightning.initialization import Initialization
from pgprune_lightning.training import PolicyGradientPruning
from tests.policy_points import is_feasible
from tests.tiny_runs import TinyRun


def probabilities(module: PolicyGradientPruning) -> torch.Tensor:
    return module.policy.keep_probabilities.detach().clone()


@pytest.mark.parametrize("budget", ["per_kind", "per_layer", "units", "parameters"])
def test_training_ends_on_the_feasible_set(tiny_run: TinyRun, budget: str) -> None:
    protected = [] if budget == "per_layer" else [0]
    module = tiny_run.module(scope=budget, protected_layers=protected, keep_ratio=0.7, lr=0.3)
    tiny_run.trainer().fit(module, datamodule=tiny_run.datamodule())
    assert is_feasible(module.feasible_set, probabilities(module))


def test_layer_bounds_hold_what_the_scores_would_empty(tiny_run: TinyRun, tmp_path: Path) -> None:
    """The scores want all of layer 2 and nothing of layer 0; only the bounds are against it."""
    scores = torch.arange(3 * 24, dtype=torch.float64)
    save_file({"scores": scores}, tmp_path / "scores.safetensors")
    start = Initialization(
        scores=str(tmp_path / "scores.safetensors"), normalization="global", slope=4.0
    )

    def fit(**options: Any) -> PolicyGradientPruning:
        module = tiny_run.module(
            kinds=["mlp_channel"], initialization=start, keep_ratio=0.5, **options
        )
        tiny_run.trainer().fit(module, datamodule=tiny_run.datamodule())
        return module

    def ratios(module: PolicyGradientPruning) -> list[list[float]]:
        vectors = (probabilities(module), module.current_mask().double())
        return [list(module.space.keep_ratio_by_layer(v).values()) for v in vectors]

    free, bounded = fit(), fit(layer_keep_ratios=(0.375, 0.625))
    for first, _, last in ratios(free):
        assert first < 0.25
        assert last > 0.75
    for by_layer in ratios(bounded):
        assert all(0.375 - 1e-9 <= ratio <= 0.625 + 1e-9 for ratio in by_layer)
    assert ratios(bounded)[1][0] == 0.375
    assert is_feasible(bounded.feasible_set, probabilities(bounded))
    assert not is_feasible(bounded.feasible_set, probabilities(free))
    assert bounded.current_mask().sum() == free.current_mask().sum() == 36
    assert bounded.current_plan().budget["layer_keep_ratios"] == [0.375, 0.625]


def test_masks_that_are_returned_keep_multiples(tiny_run: TinyRun) -> None:
    module = tiny_run.module(round_to=8, tensor_parallel=2)
    tiny_run.trainer().fit(module, datamodule=tiny_run.datamodule())
    plan = module.current_plan()
    widths = {
        group.kind: {
            int(plan.mask_U[g.start : g.end].sum())
            for g in plan.space.groups
            if g.kind == group.kind
        }
        for group in plan.space.groups
    }
    assert widths["kv_group"] <= {0, 2}
    assert widths["mlp_channel"] <= {0, 8, 16, 24}
    assert (plan.budget["round_to"], plan.budget["tensor_parallel"]) == (8, 2)
    assert "round_to" not in tiny_run.module().target_budget


def test_units_of_several_channels_are_learned(tiny_run: TinyRun) -> None:
    module = tiny_run.module(channels_per_unit=8)
    tiny_run.trainer().fit(module, datamodule=tiny_run.datamodule())
    assert module.space.group(0, "mlp_channel").count == 24 // 8
    assert is_feasible(module.feasible_set, probabilities(module))


@pytest.mark.parametrize("kinds", [["attention", "mlp"], ["layer"]])
def test_whole_layers_and_sub_layers_are_learned(tiny_run: TinyRun, kinds: list[Any]) -> None:
    start = Initialization(metric="random")
    module = tiny_run.module(kinds=kinds, keep_ratio=0.7, initialization=start)
    tiny_run.trainer().fit(module, datamodule=tiny_run.datamodule())
    assert is_feasible(module.feasible_set, probabilities(module))
    assert module.space.kept_by_kind(module.current_mask()) == dict.fromkeys(kinds, 2)
