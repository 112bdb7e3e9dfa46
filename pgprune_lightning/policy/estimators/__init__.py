"""Gradients of the keep probabilities from losses and masks, one estimator a file."""

from pgprune_lightning.policy.estimators.antithetic import Antithetic
from pgprune_lightning.policy.estimators.dense_loss import DenseLossControlVariate
from pgprune_lightning.policy.estimators.estimator import GradientEstimator
from pgprune_lightning.policy.estimators.leave_one_out import LeaveOneOut
from pgprune_lightning.policy.estimators.linear_surrogate import LinearSurrogate
from pgprune_lightning.policy.estimators.moving_average import MovingAverageBaseline
from pgprune_lightning.policy.estimators.plain import PlainReinforce
from pgprune_lightning.policy.estimators.samples import MaskSamples
from pgprune_lightning.policy.estimators.symmetric_exploration import SymmetricExploration

__all__ = [
    "Antithetic",
    "DenseLossControlVariate",
    "GradientEstimator",
    "LeaveOneOut",
    "LinearSurrogate",
    "MaskSamples",
    "MovingAverageBaseline",
    "PlainReinforce",
    "SymmetricExploration",
]
