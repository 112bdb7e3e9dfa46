"""The LightningModule: a frozen language model, a Bernoulli policy over its units, and the update.

Shapes: S mask samples, R mask samples of all ranks, U units, B sequences, T tokens.
"""

# No `from __future__ import annotations`: the command line reads these types.
import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import lazy_instance
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from pgprune_lightning.allocator import give_back_freed_memory
from pgprune_lightning.errors import UserError
from pgprune_lightning.initialization import Initialization
from pgprune_lightning.masking.decoder_family import family_of
from pgprune_lightning.masking.frozen_model import load_model_config
from pgprune_lightning.masking.model_source import resolve_model_source
from pgprune_lightning.masking.positions import check_lengths
from pgprune_lightning.masking.sharding import check_shard
from pgprune_lightning.plan import PruningPlan
from pgprune_lightning.policy import (
    FeasibleSet,
    FreeProbabilities,
    GradientEstimator,
    MaskPolicy,
    PolicyUpdate,
    UnitLayout,
    mask_generator,
    snapshot,
)
from pgprune_lightning.training.budget_schedule import BudgetSchedule
from pgprune_lightning.training.checkpoints import (
    check_checkpoint,
    check_run,
    describe_run,
    place_loops,
)
from pgprune_lightning.training.mask_evaluator import MaskEvaluator, check_losses
from pgprune_lightning.training.masked_model import MaskedModel
from pgprune_lightning.training.measured_start import MeasuredStart
from pgprune_lightning.training.options import (
    BudgetOptions,
    ExecutionOptions,
    UnitOptions,
    UpdateOptions,
)
from pgprune_lightning.training.policy_initializer import PolicyInitializer
from pgprune_lightning.training.trainer_options import check_fixed


class PolicyGradientPruning(LightningModule):
    """Learns which units of a frozen language model to keep, with forward passes only.

    Each training step draws masks from the policy, reads the masked model's loss on a batch,
    estimates the gradient of the expected loss with respect to the keep-probabilities, and takes a
    projected step onto the budget (paper, Algorithm 1). No gradient flows through the model.

    Args:
        base_model: The dense model: a hub id (optionally `ID@REVISION`), a folder in Hugging Face
            format, a `.gguf` file, or `package:DISTRIBUTION/FILE.gguf` from an installed package.
            Environment variables are expanded.
        keep_ratio: Share of the budgeted units (or parameters) that stays, in (0, 1].
        units: The units that are kept or dropped.
        budget: The budget that the keep ratio gives.
        policy: What is learned: a free probability a unit (`FreeProbabilities`, the paper's), a
            free logit (`FreeLogits`), or an offset and slopes on metrics for each layer and kind
            (`StructuredLogits`), which can let free logits join later; or such numbers, but with
            moves of them drawn instead of units (`PGPEPolicy`), every sample a whole mask.
        estimator: How losses become a gradient, with its baseline. None: that of the policy, `PGPE`
            for `PGPEPolicy`, which takes no other, and `MovingAverageBaseline` for all others.
        update: How a gradient becomes a step.
        objective: The loss that a mask is evaluated by in training.
        execution: How the frozen model is loaded and run under masks.
        initialization: How the first probabilities are found.
        seed: Seed of the masks and of a random initialisation; set by `seed_everything`.
    """

    uses_estimator = True
    """Whether the estimator that the policy chooses is written down as an option."""

    def __init__(
        self,
        base_model: str,
        keep_ratio: float,
        units: UnitOptions = UnitOptions(),  # noqa: B008 (frozen, as all groups)
        budget: BudgetOptions = BudgetOptions(),  # noqa: B008
        policy: MaskPolicy = lazy_instance(FreeProbabilities),
        estimator: GradientEstimator | None = None,
        update: UpdateOptions = UpdateOptions(),  # noqa: B008
        objective: MaskEvaluator = MaskEvaluator(),  # noqa: B008
        execution: ExecutionOptions = ExecutionOptions(),  # noqa: B008
        initialization: Initialization = Initialization(),  # noqa: B008
        seed: int = 0,
    ) -> None:
        """Check what can be checked without a model."""
        super().__init__()
        self.automatic_optimization = False
        if not 0 < keep_ratio <= 1:
            raise UserError(
                f"keep_ratio: must lie in (0, 1], given {keep_ratio}. It is the share that stays: "
                "0.7 removes 30 %."
            )
        self.multiples = units.multiples
        update.check(units.kinds)
        self.source = resolve_model_source(base_model)
        check_shard(execution.shard, self.source)
        self.keep_ratio = keep_ratio
        self.units = units
        self.budget = budget
        self.update = update
        self.objective = objective
        self.execution = execution
        self.initialization = initialization
        # Copies: the defaults are one object each, whose state must not pass to the next module.
        self.policy = copy.deepcopy(policy)
        self.estimator = self.policy.estimator_or_default(copy.deepcopy(estimator))
        objective.check(self.estimator)
        self.seed = seed

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
        """The set that the policy must lie in at this step, known after `setup`."""
        return self.budgets.at(self.global_step).feasible_set

    # The model and the first policy.

    start_folder: Path | None = None
    """Folder that keeps the measurement of the start, so that it can resume; None: nowhere."""
    measured_start: MeasuredStart | None = None

    def setup(self, stage: str) -> None:
        """Count the units from the model's configuration, so that a wrong budget fails early."""
        del stage
        if hasattr(self, "masked_model"):
            return
        self.masked_model = MaskedModel(self.source, self.units.kinds, self.units.channels_per_unit)
        lower, upper = self.budget.probability_bounds
        self.budgets = BudgetSchedule(
            self.space,
            self.keep_ratio,
            self.budget.progressive,
            scope=self.budget.scope,
            protected_layers=self.units.protected_layers,
            lower=lower,
            upper=upper,
            fill=self.budget.fill,
            layer_keep_ratios=self.budget.layer_keep_ratios,
            multiples=self.multiples,
        )
        self.policy.prepare(self.space, self.update.lr_factors or {})
        self.policy.connect(self.estimator)
        self.policy_initializer = PolicyInitializer(
            self.initialization,
            self.space,
            self.source.given,
            self.policy.feature_names,
            self.execution.shard,
        )
        even_U = torch.full((self.space.num_units,), self.keep_ratio, dtype=torch.float64)
        self.policy.start_from(self.feasible_set.project(even_U), self.feasible_set)
        self.update_name = type(self._new_update()).__name__  # refuses wrong options now

    def configure_model(self) -> None:
        """Load and freeze the model; on a fresh start, initialise the policy with its help."""
        if self.masked_model.is_loaded:
            return
        self._check_before_loading()
        # Lightning makes the accelerator the default device here; tensors for the host would be
        # made there.
        with torch.device("cpu"):
            self.masked_model.load(
                dtype=self.execution.dtype,
                device=self.trainer.strategy.root_device,
                attention=self.execution.attention,
                execution=self.execution.mode,
                shard=self.execution.shard,
            )
            if self.trainer.ckpt_path is None:
                if self.start_folder is not None:
                    budget = self.target_budget | {
                        "bounds": self.budget.probability_bounds,
                        "fill": self.budget.fill,
                        "progressive": self.budget.progressive,
                    }
                    self.measured_start = MeasuredStart(self.start_folder, self.trainer, budget)
                self.policy_initializer.start(
                    self.policy,
                    self.masked_model,
                    self.feasible_set,
                    self.policy_initializer.batches_of(self.trainer),
                    self.seed,
                    self.measured_start,
                )
        self.estimator.prepare(self.space, self.policy.keep_probabilities.detach())

    def check_lengths(self, datamodule: Any) -> None:
        """Refuse blocks that are longer than the model can read, or warn of them.

        Args:
            datamodule: Gives the blocks.

        Raises:
            UserError: If they are.
        """
        names = ("block_length", "evaluation_block_length")
        lengths = {f"data.{name}": getattr(datamodule, name, 0) for name in names}
        check_lengths(self.masked_model.config, lengths)

    def _check_before_loading(self) -> None:
        """Refuse a wrong checkpoint, too few steps or a wrong text, while that is cheap."""
        self._check_trainer()
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if self.trainer.state.fn == "fit":
            self.budgets.check_length(self.trainer.max_steps)
            batch_size = getattr(datamodule, "batch_size", None)
            if batch_size is not None:
                self.objective.check(self.estimator, batch_size * self.trainer.world_size)
            self.policy.check_length(self.trainer.max_steps)
        self.check_lengths(datamodule)
        if hasattr(datamodule, "check_tokens"):
            datamodule.check_tokens(self.masked_model.num_tokens)
        if self.trainer.ckpt_path is not None:
            check_checkpoint(self.trainer.ckpt_path, self.policy)
        else:
            self.policy_initializer.check_text(self.trainer)

    def _check_trainer(self) -> None:
        shard = self.execution.shard
        if shard > 1 and self.trainer.validate_loop.inference_mode:
            raise UserError(  # FSDP2 breaks in it
                f"trainer.inference_mode: must be false where {shard} ranks share the model "
                "(model.execution.shard); nothing is slower for it."
            )
        if self.trainer.state.fn != "fit":
            return
        if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            names = ("max_epochs", "min_epochs", "check_val_every_n_epoch")
            check_fixed({name: getattr(self.trainer, name) for name in names})
        steps = self.trainer.max_steps
        if self.update.lr_schedule == "cosine" and steps < 1:
            raise UserError(
                f"update.lr_schedule: cosine ends at trainer.max_steps, which is {steps}; give the "
                "number of steps, or use constant."
            )

    # The update.

    def configure_optimizers(self) -> tuple[list[PolicyUpdate], list[CosineAnnealingLR]]:
        """The update (by default eqs. 6 and 7), with the schedule of its step."""
        optimizer = self._new_update()
        if self.update.lr_schedule == "constant":
            return [optimizer], []
        return [optimizer], [CosineAnnealingLR(optimizer, T_max=self.trainer.max_steps)]

    def _new_update(self) -> PolicyUpdate:
        options = self.update
        return options.optimizer(self.policy, options.lr, self._project, options.lr_rule)

    def _project(self) -> None:
        # Onto the budget of the next step.
        step = self.global_step + 1
        self.policy.project(self.budgets.at(step).feasible_set, step)

    @torch.no_grad()
    def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
        """Draw masks, evaluate them, estimate the gradient, apply it, project (Algorithm 1).

        Args:
            batch: Token ids, (B, T), int64.
            batch_idx: Not used: everything random depends on the number of steps taken.

        Returns:
            Values for callbacks: `losses` (S,), nats per token; `baseline`, nats per token, as it
            was subtracted; `gradient_norm`, of the probabilities, times `lr_factors`.

        Raises:
            UserError: A loss or the gradient is not finite; policy, update and estimator are as
                they were before the step.
        """
        del batch_idx
        step, policy, estimator = self.global_step, self.policy, self.estimator
        # Draw.
        probabilities_U = policy.keep_probabilities.detach()
        generator = mask_generator(self.seed, step, self.global_rank, self.device)
        masks_SU = estimator.draw(probabilities_U, self.objective.num_masks(batch), generator)
        # Evaluate.
        samples = self.objective.evaluate(
            self.masked_model,
            batch,
            masks_SU,
            probabilities_U,
            with_dense=estimator.needs_dense_losses,
        ).among_ranks(self._rows_of_all_ranks)
        check_losses(samples.losses_R, step)
        # Estimate.
        undo = snapshot(estimator)
        try:
            gradient = self._mean_over_ranks(estimator.estimate(samples))
            # Apply and project: the update ends on the budget, or changes nothing.
            policy.assign_gradient(gradient, self.feasible_set, step)
            self.optimizers().step()  # type: ignore[union-attr]
        except Exception:
            undo()
            raise
        schedule: Any = self.lr_schedulers()
        if schedule is not None:
            schedule.step()
        return {
            "losses": samples.losses_S,
            "baseline": estimator.used_baseline.clone(),
            "gradient_norm": policy.gradient_norm(gradient),
        }

    def _rows_of_all_ranks(self, values: Tensor) -> Tensor:
        gathered: Any = self.all_gather(values)
        rows: Tensor = gathered.reshape(-1, *values.shape[1:])
        return rows

    def _mean_over_ranks(self, gradient: Tensor) -> Tensor:
        # No backward pass touches the parameter, so DDP's own all-reduce never runs. And before the
        # strategy's the host waits at a barrier for all that the ranks have launched.
        if self.trainer.world_size == 1:
            return gradient
        torch.distributed.all_reduce(gradient)
        return gradient / self.trainer.world_size

    # Masks, measured on validation and test texts.

    def current_mask(self) -> Tensor:
        """The deterministic mask of the policy, (U,), bool: its top units, exactly the budget.

        Which budget that is, `BudgetSchedule.measured_at` says.
        """
        feasible_set = self.budgets.measured_at(self.global_step).feasible_set
        return feasible_set.deterministic_mask(self.policy.ranking)

    def on_validation_epoch_start(self) -> None:
        """Take one mask for the whole evaluation."""
        self._evaluated_mask_U = self.current_mask()

    def validation_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Token losses of the deterministic mask, (B, T - 1), nats."""
        del batch_idx, dataloader_idx
        return self.masked_model.token_nll(batch, self._evaluated_mask_U)

    def on_validation_end(self) -> None:
        """Free the memory that the text took: a training step takes less and would keep it."""
        give_back_freed_memory()

    def on_test_epoch_start(self) -> None:
        """Take one mask for the whole evaluation."""
        self._evaluated_mask_U = self.current_mask()

    def test_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Token losses of the deterministic mask, (B, T - 1), nats."""
        del batch_idx, dataloader_idx
        return self.masked_model.token_nll(batch, self._evaluated_mask_U)

    # Plans and checkpoints.

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
        """Refuse another model or update, and resume at the next step."""
        name, state = self.update_name, self.state_dict()
        found = self.masked_model.fingerprint_like(checkpoint["base_model"]["fingerprint"])
        base_model = replace(self.masked_model.base_model, fingerprint=found)
        check_run(checkpoint, base_model, name, state)
        self.masked_model.restore_execution(checkpoint.get("execution"))
        place_loops(checkpoint)
