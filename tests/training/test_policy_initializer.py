from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

import callbacks
from pgprune_lightning.errors import UserError
from pgprune_lightning.initialization import Initialization
from pgprune_lightning.plan import PruningPlan
from pgprune_lightning.training import PolicyGradientPruning, masked_model
from tests.tiny_runs import TinyRun


def probabilities(module: PolicyGradientPruning) -> torch.Tensor:
    return module.policy.keep_probabilities.detach().clone()


def observers(run_dir: Path) -> list[Callback]:
    return [callbacks.PerplexityValidation(), callbacks.MaskCheckpoint(str(run_dir))]


def test_a_plan_starts_where_its_run_ended(tiny_run: TinyRun) -> None:
    run_dir = tiny_run.folder / "run"
    tiny_run.fit(observers(run_dir))
    last = PruningPlan.load(run_dir / "plans" / "last")
    start = Initialization(plan=str(run_dir / "plans" / "last"))
    continued = tiny_run.module(initialization=start)
    tiny_run.trainer(max_steps=0).fit(continued, datamodule=tiny_run.datamodule())
    torch.testing.assert_close(probabilities(continued), last.keep_probabilities_U)
    assert torch.equal(continued.current_mask(), last.mask_U)


def test_a_plan_of_other_units_is_refused_before_the_weights_are_loaded(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tiny_run.folder / "run"
    tiny_run.fit(observers(run_dir))
    monkeypatch.setattr(masked_model, "open_frozen_model", None)
    module = tiny_run.module(
        kinds=["mlp_channel"], initialization=Initialization(plan=str(run_dir))
    )
    with pytest.raises(UserError, match="is for the units of"):
        tiny_run.trainer().fit(module, datamodule=tiny_run.datamodule())
