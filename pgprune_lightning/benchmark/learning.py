"""How the timed step learns from its losses: as the paper does, or as a recipe says."""

# No `from __future__ import annotations`: the command line reads these types.
import copy
from dataclasses import dataclass, field

from pgprune_lightning.benchmark.workload import Workload
from pgprune_lightning.policy import (
    FreeProbabilities,
    GradientEstimator,
    MaskPolicy,
    ProjectedSGD,
    StepRule,
    UnitKind,
    UnitLayout,
    UpdateFactory,
)
from pgprune_lightning.training.mask_evaluator import MaskEvaluator, MaskGranularity
from pgprune_lightning.training.mask_losses import Objective


@dataclass(frozen=True)
class Learning:
    """What a step does besides its forward passes; each as in `PolicyGradientPruning`.

    Args:
        policy: The distribution of masks.
        estimator: What draws them and makes a gradient of their losses; None: that of the policy.
        update: Makes what steps the policy.
        lr_rule: What the step size means.
        lr_factors: Factor on the step by unit kind.
        mask_granularity: The text that evaluates a mask.
        objective: The loss of a mask.
    """

    policy: MaskPolicy = field(default_factory=FreeProbabilities)
    estimator: GradientEstimator | None = None
    update: UpdateFactory = ProjectedSGD
    lr_rule: StepRule = "fixed"
    lr_factors: dict[UnitKind, float] | None = None
    mask_granularity: MaskGranularity = "batch"
    objective: Objective = "cross_entropy"

    def check(self, workload: Workload) -> None:
        """Refuse, without a model, what no step could be taken by.

        Raises:
            UserError: The estimator needs more masks, or the policy does not suit the units.
        """
        policy = copy.deepcopy(self.policy)
        layer = [(0, kind, 2, 1, 0) for kind in workload.unit_kinds]
        policy.prepare(UnitLayout.build(layer, total_parameters=4), self.lr_factors or {})
        estimator = policy.estimator_or_default(self.estimator)
        self.evaluator(workload).check(estimator, workload.batch_size)

    def evaluator(self, workload: Workload) -> MaskEvaluator:
        """How the masks of a step are evaluated."""
        return MaskEvaluator(workload.num_mask_samples, self.mask_granularity, self.objective)

    def describe(self) -> dict[str, str]:
        """Names, for tables and files."""
        return {
            "policy": type(self.policy).__name__,
            "mask_granularity": self.mask_granularity,
            "objective": self.objective,
        }
