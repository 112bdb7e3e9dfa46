"""The half of the LightningModule that measures and saves a policy, and learns nothing.

Shapes: U units, B sequences, T tokens.
"""

# No `from __future__ import annotations`: what derives from it is on the command line.
from dataclasses import replace
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

from pgprune_lightning.allocator import give_back_freed_memory
from pgprune_lightning.masking.decoder_family import family_of
from pgprune_lightning.masking.frozen_model import load_model_config
from pgprune_lightning.masking.model_source import ModelSource
from pgprune_lightning.plan import PruningPlan
from pgprune_lightning.policy import FeasibleSet, MaskPolicy, UnitLayout
from pgprune_lightning.training.budget_schedule import BudgetSchedule
from pgprune_lightning.training.checkpoints import (
    check_run,
    describe_run,
    place_loops,
)
from pgprune_lightning.training.masked_model import MaskedModel
from pgprune_lightning.training.options import BudgetOptions, UnitOptions


class PolicyModule(LightningModule):
    """A policy over the masks of a frozen model: its masks are measured, its plans made.

    What derives from it fills these in by the end of `setup`.
    """

    source: ModelSource
    keep_ratio: float
    units: UnitOptions
    budget: BudgetOptions
    masked_model: MaskedModel
    budgets: BudgetSchedule
    policy: MaskPolicy
    update_name: str

    @property
    def needs_bos(self) -> bool:
        """Whether texts must begin with the BOS token, known before `setup`."""
        return family_of(load_model_config(self.source)).needs_bos

    @property
    def space(self) -> UnitLayout:
        """The units, known after `setup`."""
        return self.masked_model.space

    @property
    def feasible_set(self) -> FeasibleSet:
        """What the policy must lie in at this step, known after `setup`."""
        return self.budgets.at(self.global_step).feasible_set

    # Masks, measured on validation and test texts.

    def current_mask(self) -> Tensor:
        """The deterministic mask of the policy, (U,), bool: its top units, exactly the budget.

        Which budget that is, `BudgetSchedule.measured_at` says.
        """
        feasible_set = self.budgets.measured_at(self.global_step).feasible_set
        return feasible_set.deterministic_mask(self.policy.ranking)

    def on_validation_epoch_start(self) -> None:
        """Fix the mask for the whole evaluation."""
        self._evaluated_mask_U = self.current_mask()

    def validation_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Token losses of the deterministic mask, (B, T - 1), nats."""
        del batch_idx, dataloader_idx
        return self.masked_model.token_nll(batch, self._evaluated_mask_U)

    def on_validation_end(self) -> None:
        """Give back what the text has taken: a step takes less, and would leave it lying."""
        give_back_freed_memory()

    def on_test_epoch_start(self) -> None:
        """Fix the mask for the whole evaluation."""
        self._evaluated_mask_U = self.current_mask()

    def test_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Token losses of the deterministic mask, (B, T - 1), nats."""
        del batch_idx, dataloader_idx
        return self.masked_model.token_nll(batch, self._evaluated_mask_U)

    # What a run leaves: plans and checkpoints.

    def current_plan(self) -> PruningPlan:
        """The pruning plan of the policy as it is now, not validated."""
        keep_ratio = self.budgets.measured_at(self.global_step).keep_ratio
        return PruningPlan(
            base_model=self.masked_model.base_model,
            space=self.space,
            keep_probabilities_U=self.policy.keep_probabilities.detach().cpu().clone(),
            mask_U=self.current_mask().cpu(),
            budget=self.target_budget | {"keep_ratio": keep_ratio},
            step=self.global_step,
        )

    @property
    def target_budget(self) -> dict[str, Any]:
        """The budget of the finished run, as plans describe it."""
        units = self.units
        blocks = {"round_to": units.round_to, "tensor_parallel": units.tensor_parallel}
        return {
            "keep_ratio": self.keep_ratio,
            "scope": self.budget.scope,
            "protected_layers": list(units.protected_layers),
            "layer_keep_ratios": list(self.budget.layer_keep_ratios),
        } | {name: number for name, number in blocks.items() if number != 1}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Tie the checkpoint to the model it was learned on."""
        describe_run(checkpoint, self.masked_model.base_model, self.update_name)
        checkpoint["execution"] = self.masked_model.execution

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another model or update, and go on with the step that comes."""
        name, state = self.update_name, self.state_dict()
        found = self.masked_model.fingerprint_like(checkpoint["base_model"]["fingerprint"])
        base_model = replace(self.masked_model.base_model, fingerprint=found)
        check_run(checkpoint, base_model, name, state)
        self.masked_model.restore_execution(checkpoint.get("execution"))
        place_loops(checkpoint)
