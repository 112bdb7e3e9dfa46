"""The policy over masks, as pure torch: units, budgets, sampling, gradients, projected steps."""

from pgprune_lightning.policy.budget import (
    BudgetScope,
    Constraint,
    layer_indices,
    scope_costs,
    unit_multiples,
)
from pgprune_lightning.policy.budgeted_logits import logits_of, shift_logits
from pgprune_lightning.policy.control_variates import DenseLossControlVariate, LinearSurrogate
from pgprune_lightning.policy.estimators import (
    Antithetic,
    GradientEstimator,
    LeaveOneOut,
    MaskSamples,
    MovingAverageBaseline,
    PlainReinforce,
    mask_generator,
    sample_masks,
    score,
)
from pgprune_lightning.policy.feasible_set import FeasibleSet
from pgprune_lightning.policy.pgpe import PGPE, PGPEPolicy
from pgprune_lightning.policy.policies import (
    FreeLogits,
    FreeProbabilities,
    MaskPolicy,
    StructuredLogits,
)
from pgprune_lightning.policy.projection import project_onto_budget
from pgprune_lightning.policy.unit_layout import UnitGroup, UnitKind, UnitLayout
from pgprune_lightning.policy.updates import (
    Adam,
    NaturalGradient,
    PolicyUpdate,
    ProjectedSGD,
    StepRule,
    UpdateFactory,
    snapshot,
)

__all__ = [
    "PGPE",
    "Adam",
    "Antithetic",
    "BudgetScope",
    "Constraint",
    "DenseLossControlVariate",
    "FeasibleSet",
    "FreeLogits",
    "FreeProbabilities",
    "GradientEstimator",
    "LeaveOneOut",
    "LinearSurrogate",
    "MaskPolicy",
    "MaskSamples",
    "MovingAverageBaseline",
    "NaturalGradient",
    "PGPEPolicy",
    "PlainReinforce",
    "PolicyUpdate",
    "ProjectedSGD",
    "StepRule",
    "StructuredLogits",
    "UnitGroup",
    "UnitKind",
    "UnitLayout",
    "UpdateFactory",
    "layer_indices",
    "logits_of",
    "mask_generator",
    "project_onto_budget",
    "sample_masks",
    "scope_costs",
    "score",
    "shift_logits",
    "snapshot",
    "unit_multiples",
]
