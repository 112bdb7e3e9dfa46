"""The LightningModule: a frozen language model, a Bernoulli policy over its units, and the update.

Shapes: S mask samples, R mask samples of all ranks, U units, B sequences, T tokens.
"""

# No `from __future__ import annotations`: the command line reads these types.
import copy
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import lazy_instance
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from pgprune_lightning.errors import UserError
from pgprune_lightning.initialization import Initialization
from pgprune_lightning.masking.model_source import resolve_model_source
from pgprune_lightning.masking.positions import check_lengths
from pgprune_lightning.masking.sharding import check_shard
from pgprune_lightning.policy import (
    BudgetScope,
    FreeProbabilities,
    GradientEstimator,
    MaskPolicy,
    PolicyUpdate,
    ProjectedSGD,
    StepRule,
    UnitKind,
    UpdateFactory,
    mask_generator,
    snapshot,
    unit_multiples,
)
from pgprune_lightning.training.arguments import (
    check_arguments,
    check_inference_mode,
    check_lr_factors,
)
from pgprune_lightning.training.budget_schedule import BudgetSchedule, Progressive
from pgprune_lightning.training.checkpoints import check_checkpoint
from pgprune_lightning.training.execution_choice import ExecutionName
from pgprune_lightning.training.mask_evaluator import MaskEvaluator, MaskGranularity, check_losses
from pgprune_lightning.training.mask_losses import Objective
from pgprune_lightning.training.masked_model import MaskedModel
from pgprune_lightning.training.measured_start import MeasuredStart
from pgprune_lightning.training.policy_initializer import PolicyInitializer
from pgprune_lightning.training.policy_module import PolicyModule
from pgprune_lightning.training.trainer_options import check_fixed


class PolicyGradientPruning(PolicyModule):
    """Learns which units of a frozen language model to keep, with forward passes only.

    Each training step draws masks from the policy, reads the masked model's loss on a batch,
    estimates the gradient of the expected loss with respect to the keep-probabilities, and takes a
    projected step onto the budget (paper, Algorithm 1). No gradient flows through the model.

    Args:
        base_model: The dense model: a hub id (optionally `ID@REVISION`), a folder in Hugging Face
            format, a `.gguf` file, or `package:DISTRIBUTION/FILE.gguf` from an installed package.
            Environment variables are expanded.
        keep_ratio: Share of the budgeted units (or parameters) that stays, in (0, 1].
        unit_kinds: What one decision drops: `kv_group` (a key-value head with its query heads)
            and `mlp_channel`, or whole sub-layers, `attention` and `mlp`, each pair or one of it;
            or `layer`.
        channels_per_unit: Neighbouring channels of an MLP that stay or go together as one
            `mlp_channel` unit; must divide the MLP's width.
        budget: What the keep ratio is a share of: the units of each kind apart (`per_kind`), of
            each kind in each layer (`per_layer`), all units together (`units`), or the parameters
            of the units (`parameters`).
        protected_layers: Indices of layers that are never pruned, negative ones from the end, such
            as [0, 1, 2, 3, -2, -1] (LLM-Pruner's). They count in the budget, except `per_layer`.
        layer_keep_ratios: Least and greatest share, in [0, 1], that each kind keeps of its units in
            each layer that is not protected, in every mask and in expectation, rounded to whole
            units. Must enclose what the budget (of every stage, if `progressive`) leaves to these
            layers on average. Only for kinds with several units a layer.
        round_to: The masks that are validated and returned keep a multiple of so many channels in
            each MLP, such as 64, which matrix kernels like. The budget is not exceeded for it.
        tensor_parallel: Devices that will share each layer of the pruned model; the same masks keep
            multiples of so many KV groups and channels in each.
        lr: Step size. Of projected SGD on free probabilities in probability per (nat per token) of
            gradient; of Adam about the change of a parameter in a step, in probability or logits;
            with `lr_rule: rms_change` the change of the probabilities.
        lr_rule: What `lr` measures: `fixed`, the step of the parameters; `rms_change`, the root
            mean square change of the keep-probabilities in a step, in probability, which means the
            same for a model of 10^3 and one of 10^6 units.
        lr_factors: Factors on the step by unit kind, such as {mlp_channel: 0.1}; 1 for kinds left
            out. Losses tell far more of each of a hundred heads than of each of fifty thousand
            channels, whose steps are then mostly noise.
        lr_schedule: `constant`, as the paper, or `cosine`: from `lr` down to 0 at
            `trainer.max_steps`, as the authors' published code.
        num_mask_samples: Masks drawn in each step on each rank (N_s), for the batch or for each
            sequence of it, as `mask_granularity` says.
        mask_granularity: The text that evaluates a mask: the whole `batch`, with one forward pass a
            mask, as the paper; or one `sequence`, so that a batch of B sequences evaluates B masks
            for each of `num_mask_samples`, all in one forward pass of as many sequences, which also
            computes the units that the masks drop. The loss varies more across masks than across
            texts, so many masks give the better estimate.
        objective: The loss of a mask in training, in nats per token: the `cross_entropy` of the
            text, as the paper, or `kl_to_dense`, the divergence KL(dense || masked) of the
            next-token distributions, with one dense forward pass more a step. Validation measures
            perplexity either way.
        policy: What is learned: a free probability a unit (`FreeProbabilities`, the paper's), a
            free logit (`FreeLogits`), or an offset and slopes on metrics for each layer and kind
            (`StructuredLogits`), which can let free logits join later; or such numbers, but with
            moves of them drawn instead of units (`PGPEPolicy`), every sample a whole mask.
        update: How a gradient becomes a step: `ProjectedSGD` (the paper's, with optional
            momentum), `Adam` or `NaturalGradient`. Every step ends on the budget.
        estimator: How losses become a gradient, with its baseline. None: that of the policy, `PGPE`
            for `PGPEPolicy`, `MovingAverageBaseline` for all others.
        probability_bounds: Least and greatest keep-probability of a unit; 0 and 1 in the paper,
            where a unit that reaches either is never reconsidered.
        fill_budget: Hold the expected kept cost at the budget instead of at most there.
        progressive: Let the keep ratio fall to `keep_ratio` by stages (paper, A.12) instead of
            holding it from the start. Validation measures masks of the stage's budget, but of the
            untrained policy that of `keep_ratio`; `validate` and `test` always do.
        initialization: How the first probabilities are found.
        dtype: Type of the frozen weights: `bfloat16`, `float16`, `float32`, or `auto` (bfloat16
            where the device computes in it natively). The policy is always float64.
        attention: Attention implementation of transformers (`sdpa`, `eager`, ...). Models that cap
            attention logits, such as Gemma 2, have no `sdpa`; `eager` takes its place.
        execution: How a mask is executed: `compact` computes what it keeps alone, `dense_masked`
            everything and multiplies it by the mask, `batched` does so for all masks of a step in
            one forward pass (on a GPU by CUDA graphs, for models too small to keep it busy),
            `auto` picks the fastest in the first steps. They differ by rounding, so numbers that
            repeat bit for bit want a named one.
        shard: Ranks that share one copy of the model's weights (FSDP2), for one too large for a
            device; each still has batches and masks of its own. 1: every rank has a whole copy.
            Wants `trainer.strategy: ddp` and divides `trainer.devices`.
        seed: Seed of the masks and of a random initialisation; set by `seed_everything`.
    """

    def __init__(
        self,
        base_model: str,
        keep_ratio: float,
        unit_kinds: list[UnitKind] = ["kv_group", "mlp_channel"],  # noqa: B006 (read only)
        channels_per_unit: int = 1,
        budget: BudgetScope = "per_kind",
        protected_layers: list[int] = [],  # noqa: B006 (read only)
        layer_keep_ratios: tuple[float, float] = (0.0, 1.0),
        round_to: int = 1,
        tensor_parallel: int = 1,
        lr: float = 2e-3,
        lr_rule: StepRule = "fixed",
        lr_factors: dict[UnitKind, float] | None = None,
        lr_schedule: Literal["constant", "cosine"] = "constant",
        num_mask_samples: int = 2,
        mask_granularity: MaskGranularity = "batch",
        objective: Objective = "cross_entropy",
        policy: MaskPolicy = lazy_instance(FreeProbabilities),
        update: UpdateFactory = ProjectedSGD,
        estimator: GradientEstimator | None = None,
        probability_bounds: tuple[float, float] = (0.0, 1.0),
        fill_budget: bool = False,
        progressive: Progressive | None = None,
        initialization: Initialization = Initialization(),  # noqa: B008 (frozen)
        dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto",
        attention: str = "sdpa",
        execution: ExecutionName = "compact",
        shard: int = 1,
        seed: int = 0,
    ) -> None:
        """Check what can be checked without a model."""
        super().__init__()
        self.automatic_optimization = False
        check_arguments(keep_ratio, lr, num_mask_samples)
        check_lr_factors(lr_factors or {}, unit_kinds)
        self.source = resolve_model_source(base_model)
        check_shard(shard, self.source)
        self.keep_ratio = keep_ratio
        self.unit_kinds = unit_kinds
        self.channels_per_unit = channels_per_unit
        self.budget = budget
        self.protected_layers = protected_layers
        self.layer_keep_ratios = layer_keep_ratios
        self.round_to = round_to
        self.tensor_parallel = tensor_parallel
        self.multiples = unit_multiples(round_to, tensor_parallel, channels_per_unit)
        self.lr = lr
        self.lr_rule: StepRule = lr_rule
        self.lr_factors = lr_factors or {}
        self.lr_schedule = lr_schedule
        self.num_mask_samples = num_mask_samples
        self.evaluator = MaskEvaluator(num_mask_samples, mask_granularity, objective)
        # Copies: the defaults are one object each, whose state must not pass to the next module.
        self.policy = copy.deepcopy(policy)
        self.make_update = update
        self.estimator = self.policy.estimator_or_default(copy.deepcopy(estimator))
        self.evaluator.check(self.estimator)
        self.probability_bounds = probability_bounds
        self.fill_budget = fill_budget
        self.progressive = progressive
        self.initialization = initialization
        self.model_dtype = dtype
        self.attention = attention
        self.execution = execution
        self.shard = shard
        self.seed = seed

    # The model and the first policy.

    start_folder: Path | None = None
    """Where the measurement of the start is kept, so that it can go on; None: nowhere."""
    measured_start: MeasuredStart | None = None

    def setup(self, stage: str) -> None:
        """Count the units from the model's configuration, so that a wrong budget fails early."""
        del stage
        if hasattr(self, "masked_model"):
            return
        self.masked_model = MaskedModel(self.source, self.unit_kinds, self.channels_per_unit)
        lower, upper = self.probability_bounds
        self.budgets = BudgetSchedule(
            self.space,
            self.keep_ratio,
            self.progressive,
            scope=self.budget,
            protected_layers=self.protected_layers,
            lower=lower,
            upper=upper,
            fill=self.fill_budget,
            layer_keep_ratios=self.layer_keep_ratios,
            multiples=self.multiples,
        )
        self.policy.prepare(self.space, self.lr_factors)
        self.policy.connect(self.estimator)
        self.policy_initializer = PolicyInitializer(
            self.initialization,
            self.space,
            self.source.given,
            self.policy.feature_names,
            self.shard,
        )
        even_U = torch.full((self.space.num_units,), self.keep_ratio, dtype=torch.float64)
        self.policy.start_from(self.feasible_set.project(even_U), self.feasible_set)
        self.update_name = type(self._new_update()).__name__  # refuses wrong options now

    def configure_model(self) -> None:
        """Load and freeze the model; on a fresh start, initialise the policy with its help."""
        if self.masked_model.is_loaded:
            return
        self._check_before_loading()
        # Lightning makes the accelerator the default device here; what is meant to lie on the host
        # would be made there.
        with torch.device("cpu"):
            self.masked_model.load(
                dtype=self.model_dtype,
                device=self.trainer.strategy.root_device,
                attention=self.attention,
                execution=self.execution,
                shard=self.shard,
            )
            if self.trainer.ckpt_path is None:
                if self.start_folder is not None:
                    budget = self.target_budget | {
                        "bounds": self.probability_bounds,
                        "fill": self.fill_budget,
                        "progressive": self.progressive,
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
                self.evaluator.check(self.estimator, batch_size * self.trainer.world_size)
            self.policy.check_length(self.trainer.max_steps)
        self.check_lengths(datamodule)
        if hasattr(datamodule, "check_tokens"):
            datamodule.check_tokens(self.masked_model.num_tokens)
        if self.trainer.ckpt_path is not None:
            check_checkpoint(self.trainer.ckpt_path, self.policy)
        else:
            self.policy_initializer.check_text(self.trainer)

    def _check_trainer(self) -> None:
        check_inference_mode(self.trainer, self.shard)
        if self.trainer.state.fn != "fit":
            return
        if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            names = ("max_epochs", "min_epochs", "check_val_every_n_epoch")
            check_fixed({name: getattr(self.trainer, name) for name in names})
        steps = self.trainer.max_steps
        if self.lr_schedule == "cosine" and steps < 1:
            raise UserError(
                f"lr_schedule: cosine ends at trainer.max_steps, which is {steps}; give the number "
                "of steps, or use constant."
            )

    # The update.

    def configure_optimizers(self) -> tuple[list[PolicyUpdate], list[CosineAnnealingLR]]:
        """The update (by default eqs. 6 and 7), with the schedule of its step."""
        optimizer = self._new_update()
        if self.lr_schedule == "constant":
            return [optimizer], []
        return [optimizer], [CosineAnnealingLR(optimizer, T_max=self.trainer.max_steps)]

    def _new_update(self) -> PolicyUpdate:
        return self.make_update(self.policy, self.lr, self._project, self.lr_rule)

    def _project(self) -> None:
        # Onto the budget of the step that comes.
        step = self.global_step + 1
        self.policy.project(self.budgets.at(step).feasible_set, step)

    @torch.no_grad()
    def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
        """Draw masks, evaluate them, estimate the gradient, apply it, project (Algorithm 1).

        Args:
            batch: Token ids, (B, T), int64.
            batch_idx: Not used: everything random depends on the number of steps taken.

        Returns:
            What callbacks may look at: `losses` (S,), nats per token; `baseline`, nats per token,
            as it was subtracted; `gradient_norm`, of the probabilities, times `lr_factors`.

        Raises:
            UserError: A loss or the gradient is not finite; policy, update and estimator are as
                they were before the step.
        """
        del batch_idx
        step, policy, estimator = self.global_step, self.policy, self.estimator
        # Draw.
        probabilities_U = policy.keep_probabilities.detach()
        generator = mask_generator(self.seed, step, self.global_rank, self.device)
        masks_SU = estimator.draw(probabilities_U, self.evaluator.num_masks(batch), generator)
        # Evaluate.
        samples = self.evaluator.evaluate(
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
