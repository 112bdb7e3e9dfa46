"""Keeps the pruning plans of a run: the untrained one, the best by validation, and the last."""

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from callbacks.perplexity_validation import VALIDATION_METRIC
from pgprune_lightning.errors import UserError
from pgprune_lightning.plan import PruningPlan
from pgprune_lightning.training import PolicyGradientPruning


class MaskCheckpoint(Callback):
    """Saves pruning plans under `RUN_DIR/plans` at every validation.

    `initial` is the untrained mask, `last` the one just validated, `best` the one with the lowest
    validation perplexity so far, the untrained one included: a run never returns a worse mask than
    it started from. While the keep ratio still falls to its target, masks keep more than they may
    in the end; they are saved as `last` and never count as best.

    Args:
        run_dir: The run's folder.
    """

    def __init__(self, run_dir: str) -> None:
        self.plans = Path(run_dir) / "plans"
        self.best_perplexity = math.inf
        self.best_step = -1
        self._plans: dict[str, dict[str, Any]] = {}
        self._unwritten: dict[str, PruningPlan] = {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to know of its plans, and those that cannot be made again."""
        return {
            "best_perplexity": self.best_perplexity,
            "best_step": self.best_step,
            "plans": dict(self._plans),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.best_perplexity = state_dict["best_perplexity"]
        self.best_step = state_dict["best_step"]
        self._plans = dict(state_dict.get("plans", {}))

    def on_validation_end(
        self,
        trainer: Trainer,
        pl_module: PolicyGradientPruning,  # type: ignore[override]
    ) -> None:
        """Save the plan that was just validated."""
        if trainer.state.fn != "fit" or VALIDATION_METRIC not in trainer.callback_metrics:
            return
        perplexity = float(trainer.callback_metrics[VALIDATION_METRIC])
        plan = _validated(pl_module.current_plan(), perplexity, trainer)
        is_first = self.best_step < 0
        if is_first:
            self._save(trainer, plan, "initial")
        # The first counts as best even when its perplexity is not a number.
        counts = plan.budget == pl_module.target_budget
        if is_first or (counts and self._is_better(perplexity)):
            self.best_perplexity, self.best_step = perplexity, trainer.global_step
            self._save(trainer, plan, "best")
        self._save(trainer, plan, "last")

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Refuse, before a model is loaded, to leave the untrained mask unmeasured."""
        del pl_module
        measures_it = trainer.num_sanity_val_steps == math.inf and trainer.limit_val_batches != 0
        if stage == "fit" and not (measures_it or trainer.fast_dev_run):  # type: ignore[attr-defined]
            raise UserError(
                "The untrained mask would not be measured on the whole validation text, so this "
                "run could return a worse one: leave trainer.num_sanity_val_steps at -1 and "
                "trainer.limit_val_batches above 0."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: PolicyGradientPruning) -> None:  # type: ignore[override]
        """Keep to a better plan that the folder got after the checkpoint was written.

        Plans that the folder has lost, or has never got, are written from the checkpoint.
        """
        if trainer.ckpt_path is None:
            return
        for name, state in self._plans.items():
            if not _is_whole(self.plans / name):
                self._write(trainer, _plan_of(pl_module, state), name)
        if not _is_whole(self.plans / "best"):
            return
        best = PruningPlan.load(self.plans / "best")
        perplexity = best.validation.get("perplexity")
        recorded = best.base_model.fingerprint
        same_task = (
            best.budget == pl_module.target_budget
            and pl_module.masked_model.fingerprint_like(recorded) == recorded
        )
        if same_task and perplexity is not None and perplexity < self.best_perplexity:
            self.best_perplexity, self.best_step = perplexity, best.step
            self._plans["best"] = _state_of(best)
        elif "best" in self._plans and best.step != self.best_step:
            self._write(trainer, _plan_of(pl_module, self._plans["best"]), "best")

    def on_train_end(self, trainer: Trainer, pl_module: PolicyGradientPruning) -> None:  # type: ignore[override]
        """Refuse to end without the plans that could not be written, or have vanished.

        A plan is written again, too, where a killed process has left tensors beside it.
        """
        if not trainer.is_global_zero:
            return
        for name, plan in self._unwritten.items():
            plan.save(self.plans / name)
        for name, state in self._plans.items():
            folder = self.plans / name
            if not _is_whole(folder) or len(list(folder.iterdir())) > 2:
                _plan_of(pl_module, state).save(folder)

    def _is_better(self, perplexity: float) -> bool:
        if math.isnan(self.best_perplexity):
            return not math.isnan(perplexity)
        return perplexity < self.best_perplexity

    def _save(self, trainer: Trainer, plan: PruningPlan, name: str) -> None:
        if name != "last":
            self._plans[name] = _state_of(plan)
        self._write(trainer, plan, name)

    def _write(self, trainer: Trainer, plan: PruningPlan, name: str) -> None:
        """Write a plan, and what could not be written before; a full disk does not end the run."""
        if not trainer.is_global_zero:
            return
        has_failed = bool(self._unwritten)
        self._unwritten[name] = plan
        try:
            for waiting in list(self._unwritten):
                self._unwritten[waiting].save(self.plans / waiting)
                del self._unwritten[waiting]
        except UserError as error:
            if not has_failed:
                warnings.warn(f"plans are kept in memory and written later: {error}", stacklevel=2)


def _state_of(plan: PruningPlan) -> dict[str, Any]:
    """What of a plan the run's model and units do not say, for the checkpoint."""
    return {
        "keep_probabilities_U": plan.keep_probabilities_U,
        "mask_U": plan.mask_U,
        "budget": plan.budget,
        "step": plan.step,
        "validation": plan.validation,
    }


def _plan_of(pl_module: PolicyGradientPruning, state: dict[str, Any]) -> PruningPlan:
    return PruningPlan(base_model=pl_module.masked_model.base_model, space=pl_module.space, **state)


def _is_whole(folder: Path) -> bool:
    try:
        PruningPlan.load(folder)
    except UserError:
        return False
    return True


def _validated(plan: PruningPlan, perplexity: float, trainer: Trainer) -> PruningPlan:
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    validation = {
        "text": datamodule.validation_label,
        "sequence_length": datamodule.evaluation_block_length,
        "bos_per_block": datamodule.bos_per_block,
        "perplexity": perplexity if math.isfinite(perplexity) else None,
    }
    return replace(plan, validation=validation)
