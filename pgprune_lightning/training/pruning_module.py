"""The LightningModule: a frozen language model, a Bernoulli policy over its units, and the update.

Shapes: S mask samples, R mask samples of all ranks, U units, B sequences, T tokens.
"""

# No `from __future__ import annotations`: the command line reads these types.
import copy
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, Literal

import torch
from jsonargparse import lazy_instance
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from pgprune_lightning.errors import UserError
from pgprune_lightning.initialization import Initialization, initial_probabilities
from pgprune_lightning.initialization.from_plan import load_start_plan
from pgprune_lightning.initialization.metric import MetricInputs
from pgprune_lightning.masking.model_source import resolve_model_source
from pgprune_lightning.plan import PruningPlan
from pgprune_lightning.policy import (
    BernoulliPolicy,
    BudgetScope,
    FeasibleSet,
    GradientEstimator,
    MaskSpace,
    MovingAverageBaseline,
    ProjectedSGD,
    UnitKind,
    mask_generator,
)
from pgprune_lightning.training.arguments import check_arguments, check_lr_factors
from pgprune_lightning.training.budget_schedule import BudgetSchedule, Progressive
from pgprune_lightning.training.checkpoint_file import check_checkpoint
from pgprune_lightning.training.environment import FrozenEnvironment, Judge
from pgprune_lightning.training.execution_choice import ExecutionName
from pgprune_lightning.training.mask_judging import MaskJudging, MasksPer


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
        lr: Step size of projected SGD, in probability per (nat per token) of gradient.
        lr_factors: Factors on `lr` by unit kind, such as {mlp_channel: 0.1}; 1 for kinds left out.
            Losses tell far more of each of a hundred heads than of each of fifty thousand
            channels, whose steps are then mostly noise.
        lr_schedule: `constant`, as the paper, or `cosine`: from `lr` down to 0 at
            `trainer.max_steps`, as the authors' published code.
        num_mask_samples: Masks drawn in each step on each rank (N_s), for the batch or for each
            sequence of it, as `masks_per` says.
        masks_per: What judges a mask: the whole `batch`, with one forward pass a mask, as the
            paper; or one `sequence`, so that a batch of B sequences judges B masks for each of
            `num_mask_samples`, all in one forward pass of as many sequences, which computes what
            the masks drop too. Masks differ more than texts do, so many of them tell more.
        loss: What a mask is judged by in training, in nats per token: the `cross_entropy` of the
            text, as the paper, or `kl_to_dense`, the divergence KL(dense || masked) of the
            next-token distributions, with one dense forward pass more a step. Validation measures
            perplexity either way.
        estimator: How losses become a gradient, with its baseline.
        probability_bounds: Least and greatest keep-probability of a unit; 0 and 1 in the paper,
            where a unit that reaches either is never reconsidered.
        fill_budget: Hold the expected kept cost at the budget instead of at most there.
        progressive: Let the keep ratio fall to `keep_ratio` by stages (paper, A.12) instead of
            holding it from the start. Validation measures masks of the stage's budget, but of the
            untrained policy that of `keep_ratio`; `validate` and `test` always do.
        initialization: How the first probabilities are found.
        dtype: Type of the frozen weights: `bfloat16`, `float16`, `float32`, or `auto` (bfloat16
            where the device computes in it natively). The policy is always float64.
        attention: Attention implementation of transformers (`sdpa`, `eager`, ...).
        execution: How a mask is executed: `gathered` computes what it keeps alone, `multiplied`
            everything and multiplies it by the mask, `auto` picks the faster in the first steps.
            They differ by rounding, so numbers that repeat bit for bit want a named one.
        seed: Seed of the masks and of a random initialisation; set by `seed_everything`.
    """

    lr_factors_U: Tensor

    def __init__(
        self,
        base_model: str,
        keep_ratio: float,
        unit_kinds: list[UnitKind] = ["kv_group", "mlp_channel"],  # noqa: B006 (read only)
        channels_per_unit: int = 1,
        budget: BudgetScope = "per_kind",
        protected_layers: list[int] = [],  # noqa: B006 (read only)
        layer_keep_ratios: tuple[float, float] = (0.0, 1.0),
        lr: float = 2e-3,
        lr_factors: dict[UnitKind, float] | None = None,
        lr_schedule: Literal["constant", "cosine"] = "constant",
        num_mask_samples: int = 2,
        masks_per: MasksPer = "batch",
        loss: Judge = "cross_entropy",
        estimator: GradientEstimator = lazy_instance(MovingAverageBaseline, window=5),
        probability_bounds: tuple[float, float] = (0.0, 1.0),
        fill_budget: bool = False,
        progressive: Progressive | None = None,
        initialization: Initialization = Initialization(),  # noqa: B008 (frozen)
        dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto",
        attention: str = "sdpa",
        execution: ExecutionName = "gathered",
        seed: int = 0,
    ) -> None:
        """Check what can be checked without a model."""
        super().__init__()
        self.automatic_optimization = False
        check_arguments(keep_ratio, lr, num_mask_samples)
        check_lr_factors(lr_factors or {}, unit_kinds)
        self.source = resolve_model_source(base_model)
        self.keep_ratio = keep_ratio
        self.unit_kinds = unit_kinds
        self.channels_per_unit = channels_per_unit
        self.budget = budget
        self.protected_layers = protected_layers
        self.layer_keep_ratios = layer_keep_ratios
        self.lr = lr
        self.lr_factors = lr_factors or {}
        self.lr_schedule = lr_schedule
        self.num_mask_samples = num_mask_samples
        self.judging = MaskJudging(num_mask_samples, masks_per, loss)
        # A copy: the default is one object, and its baseline must not pass to the next module.
        self.estimator = copy.deepcopy(estimator)
        self.judging.check(self.estimator)
        self.probability_bounds = probability_bounds
        self.fill_budget = fill_budget
        self.progressive = progressive
        self.initialization = initialization
        self.model_dtype = dtype
        self.attention = attention
        self.execution = execution
        self.seed = seed

    # The environment and the first policy.

    def setup(self, stage: str) -> None:
        """Count the units from the model's configuration, so that a wrong budget fails early."""
        del stage
        if hasattr(self, "environment"):
            return
        self.environment = FrozenEnvironment(self.source, self.unit_kinds, self.channels_per_unit)
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
        )
        start_U = torch.full((self.space.num_units,), self.keep_ratio, dtype=torch.float64)
        self.policy = BernoulliPolicy(self.feasible_set.project(start_U))
        factors_U = torch.ones_like(start_U)
        for kind, factor in self.lr_factors.items():
            factors_U[self.space.units_of(kind)] = factor
        self.register_buffer("lr_factors_U", factors_U, persistent=False)
        self.initialization.check_units(self.space)
        plan = self.initialization.plan
        self.start_plan = (
            None if plan is None else load_start_plan(plan, self.space, self.source.given)
        )

    @property
    def space(self) -> MaskSpace:
        """The units, known after `setup`."""
        return self.environment.space

    @property
    def feasible_set(self) -> FeasibleSet:
        """What the policy must lie in at this step, known after `setup`."""
        return self.budgets.at(self.global_step).feasible_set

    def configure_model(self) -> None:
        """Load and freeze the model; on a fresh start, initialise the policy with its help."""
        if self.environment.is_loaded:
            return
        self._check_before_loading()
        device = self.trainer.strategy.root_device
        self.environment.load(
            dtype=self.model_dtype,
            device=device,
            attention=self.attention,
            execution=self.execution,
        )
        if self.trainer.ckpt_path is None:
            with torch.no_grad():
                self.policy.keep_probabilities.copy_(self._start_probabilities())
        self.estimator.prepare(self.space, self.policy.keep_probabilities.detach())

    def _check_before_loading(self) -> None:
        """Refuse a wrong checkpoint, too few steps or too little text, while that is cheap."""
        if self.trainer.state.fn == "fit":
            self.budgets.check_length(self.trainer.max_steps)
            batch_size = getattr(getattr(self.trainer, "datamodule", None), "batch_size", None)
            if batch_size is not None:
                self.judging.check(self.estimator, batch_size * self.trainer.world_size)
        if self.trainer.ckpt_path is not None:
            check_checkpoint(self.trainer.ckpt_path, self.space.num_units)
        elif self.initialization.reads_text:
            self._calibration_batches()

    def _start_probabilities(self) -> Tensor:
        if self.start_plan is not None:
            base_model = self.environment.base_model
            self.start_plan.check_base_model(base_model.fingerprint, base_model.source)
            return self.feasible_set.project(self.start_plan.keep_probabilities_U)
        inputs = MetricInputs(
            model=self.environment.model,
            space=self.space,
            calibration_batches=self._calibration_batches,
            seed=self.seed,
        )
        return initial_probabilities(self.initialization, inputs, self.feasible_set)

    def _calibration_batches(self) -> Iterable[Tensor]:
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if datamodule is None:
            raise UserError(
                "The initial metric needs calibration data: give the Trainer a datamodule."
            )
        batches: Iterable[Tensor] = datamodule.calibration_batches(
            self.initialization.num_blocks, datamodule.batch_size
        )
        return batches

    # The update.

    def configure_optimizers(self) -> tuple[list[ProjectedSGD], list[CosineAnnealingLR]]:
        """Projected SGD on the keep-probabilities (eqs. 6 and 7), with the schedule of its step."""
        parameters = [self.policy.keep_probabilities]
        optimizer = ProjectedSGD(parameters, lr=self.lr, projection=self._project_step)
        if self.lr_schedule == "constant":
            return [optimizer], []
        steps = self.trainer.max_steps
        if steps < 1:
            raise UserError("lr_schedule: cosine ends at trainer.max_steps, which is not set.")
        return [optimizer], [CosineAnnealingLR(optimizer, T_max=steps)]

    def _project_step(self, z_U: Tensor) -> Tensor:
        # Onto the budget of the step that comes: this one is counted only when it is done.
        return self.budgets.at(self.global_step + 1).feasible_set.project(z_U)

    def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
        """Draw masks, read their losses, estimate the gradient, step and project.

        Args:
            batch: Token ids, (B, T), int64.
            batch_idx: Not used: everything random depends on the number of steps taken.

        Returns:
            What callbacks may look at: `losses` (S,), nats per token; `baseline`, nats per token,
            as it was subtracted; `gradient_norm`.
        """
        del batch_idx
        generator = mask_generator(self.seed, self.global_step, self.global_rank, self.device)
        probabilities_U = self.policy.keep_probabilities
        samples = self.judging.samples(
            self.environment, batch, probabilities_U.detach(), self.estimator, generator
        )
        self._check_losses(samples.losses_S)
        gradient_U = self.estimator.estimate(samples.among_ranks(self._rows_of_all_ranks))
        probabilities_U.grad = self._mean_over_ranks(gradient_U) * self.lr_factors_U
        optimizer: Any = self.optimizers()
        optimizer.step()
        schedule: Any = self.lr_schedulers()
        if schedule is not None:
            schedule.step()
        return {
            "losses": samples.losses_S,
            "baseline": self.estimator.used_baseline.clone(),
            "gradient_norm": probabilities_U.grad.norm(),
        }

    def _check_losses(self, losses_S: Tensor) -> None:
        if bool(losses_S.isfinite().all()):
            return
        sample = int((~losses_S.isfinite()).nonzero()[0])
        raise UserError(
            f"The loss of mask sample {sample} in step {self.global_step} is "
            f"{float(losses_S[sample])}; the policy stays as it was before this step. Try "
            "model.dtype float32, a higher model.keep_ratio, or look for broken weights; the last "
            "checkpoint goes on from here with --ckpt_path."
        )

    def _rows_of_all_ranks(self, values: Tensor) -> Tensor:
        gathered: Any = self.all_gather(values)
        rows: Tensor = gathered.reshape(-1, *values.shape[1:])
        return rows

    def _mean_over_ranks(self, gradient_U: Tensor) -> Tensor:
        # No backward pass touches the parameter, so DDP's own all-reduce never runs.
        reduced: Any = self.trainer.strategy.reduce(gradient_U, reduce_op="mean")
        mean_U: Tensor = reduced
        return mean_U

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Tie the checkpoint to the model it was learned on."""
        checkpoint["base_model"] = asdict(self.environment.base_model)
        checkpoint["execution"] = self.environment.execution

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another model, and forget the batch that an error broke off.

        That batch would shift all later validations.
        """
        learned_on, given = checkpoint["base_model"], self.environment.base_model
        if learned_on["fingerprint"] != given.fingerprint:
            raise UserError(
                f"ckpt_path: the policy was learned on {learned_on['source']!r}, whose weights are "
                f"not those of {given.source!r}. Go on with the model of its run."
            )
        self.environment.restore_execution(checkpoint.get("execution"))
        loops = checkpoint.get("loops", {})
        if "fit_loop" in loops:
            batches = loops["fit_loop"]["epoch_loop.batch_progress"]["total"]
            batches["ready"] = checkpoint["global_step"]

    # Measuring masks.

    def current_mask(self) -> Tensor:
        """The deterministic mask of the policy, (U,), bool: the top of s, exactly the budget.

        Which budget that is, `BudgetSchedule.measured_at` says.
        """
        feasible_set = self.budgets.measured_at(self.global_step).feasible_set
        return feasible_set.deterministic_mask(self.policy.keep_probabilities.detach())

    def on_validation_epoch_start(self) -> None:
        """Fix the mask for the whole evaluation."""
        self._evaluated_mask_U = self.current_mask()

    def validation_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Token losses of the deterministic mask, (B, T - 1), nats."""
        del batch_idx, dataloader_idx
        return self.environment.token_nll(batch, self._evaluated_mask_U)

    def on_test_epoch_start(self) -> None:
        """Fix the mask for the whole evaluation."""
        self._evaluated_mask_U = self.current_mask()

    def test_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Token losses of the deterministic mask, (B, T - 1), nats."""
        del batch_idx, dataloader_idx
        return self.environment.token_nll(batch, self._evaluated_mask_U)

    def current_plan(self) -> PruningPlan:
        """The pruning plan of the policy as it is now, not validated."""
        keep_ratio = self.budgets.measured_at(self.global_step).keep_ratio
        return PruningPlan(
            base_model=self.environment.base_model,
            space=self.space,
            keep_probabilities_U=self.policy.keep_probabilities.detach().cpu().clone(),
            mask_U=self.current_mask().cpu(),
            budget=self.target_budget | {"keep_ratio": keep_ratio},
            step=self.global_step,
        )

    @property
    def target_budget(self) -> dict[str, Any]:
        """The budget of the finished run, as plans describe it."""
        return {
            "keep_ratio": self.keep_ratio,
            "scope": self.budget,
            "protected_layers": list(self.protected_layers),
            "layer_keep_ratios": list(self.layer_keep_ratios),
        }
