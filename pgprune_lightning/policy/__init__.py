"""The policy over masks, as pure torch: units, budgets, sampling, gradients, projected steps."""

from pgprune_lightning.policy.bernoulli import BernoulliPolicy, mask_generator, score
from pgprune_lightning.policy.budget import FeasibleSet
from pgprune_lightning.policy.constraint import BudgetScope, Constraint
from pgprune_lightning.policy.estimators import (
    Antithetic,
    DenseLossControlVariate,
    GradientEstimator,
    LeaveOneOut,
    LinearSurrogate,
    MaskSamples,
    MovingAverageBaseline,
    PlainReinforce,
)
from pgprune_lightning.policy.mask_space import MaskSpace, UnitGroup, UnitKind
from pgprune_lightning.policy.projected_sgd import ProjectedSGD
from pgprune_lightning.policy.projection import project_onto_budget

__all__ = [
    "Antithetic",
    "BernoulliPolicy",
    "BudgetScope",
    "Constraint",
    "DenseLossControlVariate",
    "FeasibleSet",
    "GradientEstimator",
    "LeaveOneOut",
    "LinearSurrogate",
    "MaskSamples",
    "MaskSpace",
    "MovingAverageBaseline",
    "PlainReinforce",
    "ProjectedSGD",
    "UnitGroup",
    "UnitKind",
    "mask_generator",
    "project_onto_budget",
    "score",
]
