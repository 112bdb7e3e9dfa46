"""The options of `PolicyGradientPruning` in groups, with the checks that need no model."""

# No `from __future__ import annotations`: the command line reads these types.
from dataclasses import dataclass, field
from typing import Literal

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy import (
    BudgetScope,
    ProjectedSGD,
    StepRule,
    UnitKind,
    UpdateFactory,
    unit_multiples,
)
from pgprune_lightning.training.budget_schedule import Progressive
from pgprune_lightning.training.execution_choice import ExecutionName

# The checks are no __post_init__: the command line would bury what that raises.


@dataclass(frozen=True)
class UnitOptions:
    """The units that are kept or dropped.

    Args:
        kinds: What one decision drops: `kv_group` (a key-value head with its query heads) and
            `mlp_channel`, or whole sub-layers, `attention` and `mlp`, each pair or one of it; or
            `layer`.
        channels_per_unit: Number of neighbouring channels of an MLP that form one `mlp_channel`
            unit; must divide the MLP's width.
        protected_layers: Indices of layers that are never pruned, negative ones from the end, such
            as [0, 1, 2, 3, -2, -1] (LLM-Pruner's). They count in the budget, except `per_layer`.
        round_to: The masks that are validated and returned keep a multiple of this number of
            channels in each MLP, such as 64, which matrix kernels like, within the budget.
        tensor_parallel: Devices that will share each layer of the pruned model; the same masks keep
            multiples of this number of KV groups and channels in each layer.
    """

    kinds: list[UnitKind] = field(default_factory=lambda: ["kv_group", "mlp_channel"])
    channels_per_unit: int = 1
    protected_layers: list[int] = field(default_factory=list)
    round_to: int = 1
    tensor_parallel: int = 1

    @property
    def multiples(self) -> dict[UnitKind, int]:
        """By kind, the number of units that a mask keeps a multiple of in each layer.

        Raises:
            UserError: A number is not positive.
        """
        return unit_multiples(self.round_to, self.tensor_parallel, self.channels_per_unit)


@dataclass(frozen=True)
class BudgetOptions:
    """The budget that the keep ratio gives.

    Args:
        scope: What the keep ratio is a share of: the units of each kind apart (`per_kind`), of each
            kind in each layer (`per_layer`), all units together (`units`), or the parameters of the
            units (`parameters`).
        fill: Hold the expected kept cost at the budget instead of at most there.
        layer_keep_ratios: Least and greatest share, in [0, 1], that each kind keeps of its units in
            each layer that is not protected, in every mask and in expectation, rounded to whole
            units. Must enclose what the budget (of every stage, if `progressive`) leaves to these
            layers on average. Only for kinds with several units a layer.
        probability_bounds: Least and greatest keep-probability of a unit; 0 and 1 in the paper,
            where a unit that reaches either is never reconsidered.
        progressive: Let the keep ratio fall to `model.keep_ratio` by stages (paper, A.12) instead
            of holding it from the start. Validation measures masks of the stage's budget, but of
            the untrained policy that of `model.keep_ratio`; `validate` and `test` always do.
    """

    scope: BudgetScope = "per_kind"
    fill: bool = False
    layer_keep_ratios: tuple[float, float] = (0.0, 1.0)
    probability_bounds: tuple[float, float] = (0.0, 1.0)
    progressive: Progressive | None = None


@dataclass(frozen=True)
class UpdateOptions:
    """How a gradient becomes a step.

    Args:
        optimizer: What takes the step: `ProjectedSGD` (the paper's, with optional momentum), `Adam`
            or `NaturalGradient`. Every step ends on the budget.
        lr: Step size. Of projected SGD on free probabilities in probability per (nat per token) of
            gradient; of Adam about the change of a parameter in a step, in probability or logits;
            with `lr_rule: rms_change` the change of the probabilities.
        lr_rule: What `lr` measures: `fixed`, the step of the parameters; `rms_change`, the root
            mean square change of the keep-probabilities in a step, in probability, which means the
            same for a model of 10^3 and one of 10^6 units.
        lr_factors: Factors on the step by unit kind, such as {mlp_channel: 0.1}; 1 for kinds left
            out. The losses tell far more about each of a hundred heads than about each of fifty
            thousand channels, whose steps are mostly noise.
        lr_schedule: `constant`, as the paper, or `cosine`: from `lr` down to 0 at
            `trainer.max_steps`, as the authors' published code.
    """

    optimizer: UpdateFactory = ProjectedSGD
    lr: float = 2e-3
    lr_rule: StepRule = "fixed"
    lr_factors: dict[UnitKind, float] | None = None
    lr_schedule: Literal["constant", "cosine"] = "constant"

    def check(self, kinds: list[UnitKind]) -> None:
        """Refuse a step size or factor out of its range, and factors of kinds that stay.

        Raises:
            UserError: If there is one.
        """
        if not self.lr > 0:
            raise UserError(f"update.lr: must be above 0, given {self.lr}.")
        for kind, factor in (self.lr_factors or {}).items():
            if kind not in kinds:
                raise UserError(f"update.lr_factors: {kind} is not among units.kinds {kinds}.")
            if not factor >= 0:
                raise UserError(
                    f"update.lr_factors: the factor of {kind} must be 0 or more, given {factor}."
                )


@dataclass(frozen=True)
class ExecutionOptions:
    """How the frozen model is loaded and run under masks.

    Args:
        mode: How a mask is executed: `compact` computes only what it keeps, `dense_masked` computes
            everything and multiplies it by the mask, `batched` does so for all masks of a step in
            one forward pass (on a GPU by CUDA graphs, for models too small to keep it busy), `auto`
            picks the fastest in the first steps. They differ by rounding: name one for numbers
            that repeat bit for bit.
        dtype: Type of the frozen weights: `bfloat16`, `float16`, `float32`, or `auto` (bfloat16
            where the device computes in it natively). The policy is always float64.
        attention: Attention implementation of transformers (`sdpa`, `eager`, ...). Models that cap
            attention logits, such as Gemma 2, have no `sdpa`; `eager` takes its place.
        shard: Ranks that share one copy of the model's weights (FSDP2), for one too large for a
            device; each still has batches and masks of its own. 1: every rank has a whole copy.
            Wants `trainer.strategy: ddp` and divides `trainer.devices`.
    """

    mode: ExecutionName = "compact"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    attention: str = "sdpa"
    shard: int = 1
