"""The keep ratio falls by stages, and only steps decide where it stands."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from callbacks import MaskCheckpoint, PerplexityValidation
from pgprune_lightning.errors import UserError
from pgprune_lightning.initialization import Initialization
from pgprune_lightning.plan import PruningPlan
from pgprune_lightning.policy import UnitLayout
from pgprune_lightning.training import PolicyGradientPruning
from pgprune_lightning.training.budget_schedule import BudgetSchedule, Progressive
from tests.policy_points import is_feasible
from tests.tiny_runs import TinyRun

SPACE = UnitLayout.build([(0, "mlp_channel", 100, 1, 0)], total_parameters=100)
THREE_STAGES = Progressive(start=0.9, step=0.15, steps_per_stage=2)
"""To 0.6: two steps at 0.9, two at 0.75, the rest at the target."""


def progressive_module(tiny_run: TinyRun, **options: Any) -> PolicyGradientPruning:
    return tiny_run.module(
        progressive=THREE_STAGES,
        initialization=Initialization(metric="random"),
        fill=True,
        **options,
    )


@pytest.mark.parametrize(
    ("progressive", "target", "ratios"),
    [
        (Progressive(0.95, 0.05), 0.7, [0.95, 0.9, 0.85, 0.8, 0.75, 0.7]),
        (Progressive(0.95, 0.05), 0.5, [round(0.95 - 0.05 * stage, 2) for stage in range(10)]),
        (Progressive(0.95, 0.1), 0.7, [0.95, 0.85, 0.75, 0.7]),
        (Progressive(1.0, 0.9), 0.7, [1.0, 0.7]),
    ],
)
def test_stages_fall_to_the_target(
    progressive: Progressive, target: float, ratios: list[float]
) -> None:
    assert progressive.ratios(target) == ratios


def test_the_steps_decide_the_stage() -> None:
    schedule = BudgetSchedule(SPACE, 0.6, THREE_STAGES)
    assert [schedule.at(step).keep_ratio for step in range(7)] == [
        *(0.9, 0.9, 0.75, 0.75, 0.6, 0.6, 0.6)
    ]
    for stage in schedule.stages:
        (constraint,) = stage.feasible_set.constraints
        assert constraint.limit == round(100 * stage.keep_ratio)
    assert [schedule.measured_at(step).keep_ratio for step in range(3)] == [0.6, 0.9, 0.75]


def test_without_stages_the_target_holds_from_the_start() -> None:
    schedule = BudgetSchedule(SPACE, 0.6, None)
    assert [schedule.at(step).keep_ratio for step in (0, 1, 1000)] == [0.6] * 3
    schedule.check_length(1)


def test_a_run_must_train_at_the_target() -> None:
    schedule = BudgetSchedule(SPACE, 0.6, THREE_STAGES)
    for long_enough in (5, -1):
        schedule.check_length(long_enough)
    with pytest.raises(UserError, match=r"after 4 steps, but trainer\.max_steps is 4"):
        schedule.check_length(4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 1.1}, "start: must lie in"),
        ({"step": 0.0}, "step: must lie between"),
        ({"steps_per_stage": 0}, "steps_per_stage: must be at least 1"),
    ],
)
def test_values_that_make_no_stages_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        BudgetSchedule(SPACE, 0.6, Progressive(**options))


def test_a_start_below_the_target_is_refused() -> None:
    with pytest.raises(UserError, match=r"0\.6 is not above the keep ratio 0\.6"):
        BudgetSchedule(SPACE, 0.6, Progressive(start=0.6))


def test_the_bounds_of_a_layer_must_allow_every_stage() -> None:
    sizes = [(layer, "mlp_channel", 100, 1, 0) for layer in range(2)]
    space = UnitLayout.build(sizes, total_parameters=200)
    schedule = BudgetSchedule(space, 0.6, THREE_STAGES, layer_keep_ratios=(0.5, 0.9))
    ranked_U = torch.arange(200.0)  # layer 1 before layer 0, which keeps its minimum or the rest
    masks = [stage.feasible_set.deterministic_mask(ranked_U) for stage in schedule.stages]
    assert [mask.view(2, 100).sum(1).tolist() for mask in masks] == [[90, 90], [60, 90], [50, 70]]
    with pytest.raises(UserError, match=r"which is 90\.00%.*maximum of at least 0\.9"):
        BudgetSchedule(space, 0.6, THREE_STAGES, layer_keep_ratios=(0.5, 0.8))


def test_the_policy_follows_the_stages(tiny_run: TinyRun) -> None:
    class Recorder(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
            s_U = module.policy.keep_probabilities.detach()
            assert is_feasible(module.feasible_set, s_U)
            kept.append(module.feasible_set.expected_keep_ratio(s_U))

    kept: list[float] = []
    module = progressive_module(tiny_run)
    tiny_run.trainer([Recorder()], max_steps=6).fit(module, datamodule=tiny_run.datamodule())
    # 6 groups and 72 channels; the bounds of the sums are whole units.
    assert kept == pytest.approx([69 / 78, 69 / 78, 58 / 78, 58 / 78, 46 / 78, 46 / 78])


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tiny_run: TinyRun) -> None:
    whole = progressive_module(tiny_run)
    tiny_run.trainer(max_steps=6).fit(whole, datamodule=tiny_run.datamodule())

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == stop

    for stop in (1, 2, 3):
        first = tiny_run.trainer([Stop()], max_steps=6)
        first.fit(progressive_module(tiny_run), datamodule=tiny_run.datamodule())
        assert first.global_step == stop
        checkpoint = tiny_run.folder / f"{stop}.ckpt"
        first.save_checkpoint(checkpoint)
        resumed = progressive_module(tiny_run)
        tiny_run.trainer(max_steps=6).fit(
            resumed, datamodule=tiny_run.datamodule(), ckpt_path=checkpoint
        )
        assert torch.equal(resumed.policy.keep_probabilities, whole.policy.keep_probabilities)


def test_a_run_too_short_for_the_target_is_refused(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgprune_lightning.training.masked_model.open_frozen_model", None)
    with pytest.raises(UserError, match="after 4 steps"):
        tiny_run.trainer(max_steps=4).fit(
            progressive_module(tiny_run), datamodule=tiny_run.datamodule()
        )


class Falling(PerplexityValidation):
    """Reports lower and lower perplexities, but first those of the wide stages, lowest of all."""

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        perplexity = {0: 9.0, 1: 1.0, 2: 2.0, 3: 3.0, 4: 8.5, 5: 8.0}[trainer.global_step]
        pl_module.log("val/perplexity", torch.tensor(perplexity), logger=False)


def test_only_masks_of_the_target_count_for_best(tiny_run: TinyRun) -> None:
    class Recorder(Callback):
        def on_validation_end(self, trainer: Any, module: Any) -> None:
            plan = PruningPlan.load(tiny_run.folder / "plans" / "last")
            seen.append((plan.budget["keep_ratio"], int(plan.mask_U.sum()), best_step()))
            assert torch.equal(plan.mask_U, module._evaluated_mask_U)

    def best_step() -> int:
        return PruningPlan.load(tiny_run.folder / "plans" / "best").step

    seen: list[tuple[float, int, int]] = []
    callbacks = [Falling(), MaskCheckpoint(str(tiny_run.folder)), Recorder()]
    tiny_run.trainer(callbacks, max_steps=5, val_check_interval=1).fit(
        progressive_module(tiny_run), datamodule=tiny_run.datamodule()
    )
    # The untrained mask is measured at the target, and is the best until the target is reached.
    assert seen == [
        (0.6, 46, 0),
        (0.9, 69, 0),
        (0.75, 58, 0),
        (0.75, 58, 0),
        (0.6, 46, 4),
        (0.6, 46, 5),
    ]
    initial = PruningPlan.load(tiny_run.folder / "plans" / "initial")
    assert (initial.step, initial.budget["keep_ratio"]) == (0, 0.6)


def test_a_resumed_run_keeps_a_better_plan_of_the_target(tiny_run: TinyRun) -> None:
    def fit(stop: int, ckpt_path: Path | None) -> MaskCheckpoint:
        class Stop(Callback):
            def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
                if trainer.global_step == 1:
                    trainer.save_checkpoint(tiny_run.folder / "1.ckpt")
                trainer.should_stop = trainer.global_step == stop

        keeper = MaskCheckpoint(str(tiny_run.folder))
        tiny_run.trainer([Falling(), keeper, Stop()], max_steps=5, val_check_interval=1).fit(
            progressive_module(tiny_run), datamodule=tiny_run.datamodule(), ckpt_path=ckpt_path
        )
        return keeper

    assert fit(5, None).best_step == 5
    # The checkpoint was written while the keep ratio was 0.9; the plan on disk came later.
    assert fit(2, tiny_run.folder / "1.ckpt").best_step == 5
