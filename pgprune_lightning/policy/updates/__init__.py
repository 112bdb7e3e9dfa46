"""How a gradient becomes a step that ends on the budget, one update a file."""

from pgprune_lightning.policy.updates.adam import Adam
from pgprune_lightning.policy.updates.natural_gradient import NaturalGradient
from pgprune_lightning.policy.updates.policy_update import (
    PolicyUpdate,
    StepRule,
    UpdateFactory,
)
from pgprune_lightning.policy.updates.projected_sgd import ProjectedSGD

__all__ = ["Adam", "NaturalGradient", "PolicyUpdate", "ProjectedSGD", "StepRule", "UpdateFactory"]
