"""A run ends when it no longer improves, and returns its best mask, be it the untrained one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks import EarlyStop, MaskCheckpoint, PerplexityValidation
from pgprune_lightning.errors import UserError
from pgprune_lightning.plan import PruningPlan
from pgprune_lightning.policy import Adam, FreeLogits
from pgprune_lightning.training.budget_schedule import Progressive
from tests.tiny_commands import TinyCommand
from tests.tiny_runs import TinyRun


class Scripted(PerplexityValidation):
    """Reports given perplexities instead of measured ones, the last one again and again."""

    def __init__(self, *perplexities: float) -> None:
        super().__init__()
        self.left = list(perplexities)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        value = self.left.pop(0) if len(self.left) > 1 else self.left[0]
        pl_module.log("val/perplexity", torch.tensor(value), logger=False)


NAN = float("nan")


def fit(
    tiny_run: TinyRun,
    perplexities: tuple[float, ...],
    ckpt_path: Path | None = None,
    patience: int = 2,
    **options: Any,
) -> Any:
    module = tiny_run.module(**options)
    callbacks = [
        Scripted(*perplexities),
        MaskCheckpoint(str(tiny_run.folder)),
        EarlyStop(patience=patience, min_improvement=0.1),
    ]
    trainer = tiny_run.trainer(callbacks, max_steps=7, val_check_interval=1)
    trainer.fit(module, datamodule=tiny_run.datamodule(), ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize(
    ("perplexities", "steps", "best_step"),
    [
        ((10.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0), 7, 7),
        ((10.0, 11.0, 12.0), 2, 0),
        ((10.0, 8.0, 8.5, 6.0, 6.0, 5.9, 1.0), 5, 5),  # 5.9 is the best, but no tenth better
        ((10.0, 9.5, 8.9, 8.9, 8.9), 4, 2),  # two small falls are one of a tenth
        ((NAN, NAN, NAN, 1.0), 2, 0),
        ((10.0, NAN, 8.0, NAN, NAN, 1.0), 4, 2),
    ],
)
def test_it_ends_when_patience_does(
    tiny_run: TinyRun, perplexities: tuple[float, ...], steps: int, best_step: int
) -> None:
    assert fit(tiny_run, perplexities).global_step == steps
    assert PruningPlan.load(tiny_run.folder / "plans" / "best").step == best_step


def test_a_resumed_run_goes_on_waiting(tiny_run: TinyRun) -> None:
    trainer = fit(tiny_run, (10.0, 8.0, 9.0, 9.0))
    assert trainer.global_step == 3
    path = tiny_run.folder / "stopped.ckpt"
    trainer.save_checkpoint(path)
    assert fit(tiny_run, (), path).global_step == 3, "it had ended"
    more = fit(tiny_run, (7.9, 7.9), path, patience=3)
    assert more.global_step == 4, "no tenth better: waits no longer"
    more = fit(tiny_run, (7.0, 7.0, 7.0, 7.0), path, patience=3)
    assert more.global_step == 7, "better: waits anew"


def test_masks_of_a_wider_budget_do_not_count(tiny_run: TinyRun) -> None:
    stages = Progressive(start=0.9, step=0.15, steps_per_stage=2)
    # After 4 steps the target holds; until then perplexities are low, and nothing is waited for.
    perplexities = (10.0, 1.0, 2.0, 3.0, 12.0, 12.0)
    assert fit(tiny_run, perplexities, progressive=stages).global_step == 5


@pytest.mark.parametrize("options", [{"patience": 0}, {"min_improvement": 1.0}])
def test_wrong_numbers_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        EarlyStop(**options)


@pytest.mark.parametrize("policy", [None, FreeLogits()])
def test_a_run_that_only_harms_returns_the_mask_it_started_from(
    tiny_run: TinyRun, policy: Any
) -> None:
    """Measured, not scripted: the steps go uphill."""

    class Uphill(Adam):
        def _directions(self, parameters: list[torch.Tensor]) -> list[torch.Tensor | None]:
            return [None if d is None else -d for d in super()._directions(parameters)]

    measured: list[float] = []

    class Recorder(PerplexityValidation):
        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            super().on_validation_epoch_end(trainer, pl_module)
            measured.append(float(trainer.callback_metrics["val/perplexity"]))

    options = {} if policy is None else {"policy": policy}
    module = tiny_run.module(optimizer=Uphill, lr=0.3, lr_rule="rms_change", **options)
    keeper = MaskCheckpoint(str(tiny_run.folder))
    tiny_run.trainer([Recorder(), keeper], max_steps=6).fit(
        module, datamodule=tiny_run.datamodule()
    )
    plans = {
        name: PruningPlan.load(tiny_run.folder / "plans" / name) for name in ("initial", "best")
    }
    perplexity = {name: plan.validation["perplexity"] for name, plan in plans.items()}
    assert len(set(measured)) > 1
    assert perplexity["best"] == min(measured) <= perplexity["initial"] == measured[0]


def test_the_overlay_ends_a_run(tiny_command: TinyCommand, tmp_path: Path) -> None:
    overlay = Path(__file__).parents[2] / "configs" / "overlays" / "early_stopping.yaml"
    # A step that changes no probability changes no mask: the first five validations are in vain.
    run = tiny_command(
        "fit",
        *("--config", str(overlay), "--trainer.max_steps=50", "--trainer.val_check_interval=1"),
        *("--model.update.lr=1e-12",),
    )
    assert run.status == 0, run.err
    assert json.loads((tiny_command.run_dir / "summary.json").read_text())["steps"] == 5
    assert (tiny_command.run_dir / "checkpoints" / "last.ckpt").is_file()
