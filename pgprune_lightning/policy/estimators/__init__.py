"""Gradients of the keep probabilities from losses and masks."""

from pgprune_lightning.policy.estimators.antithetic import Antithetic, PairedEstimator
from pgprune_lightning.policy.estimators.control_variates import (
    DenseLossControlVariate,
    LinearSurrogate,
)
from pgprune_lightning.policy.estimators.estimator import GradientEstimator, MaskSamples
from pgprune_lightning.policy.estimators.reinforce import (
    LeaveOneOut,
    MovingAverageBaseline,
    PlainReinforce,
)

__all__ = [
    "Antithetic",
    "DenseLossControlVariate",
    "GradientEstimator",
    "LeaveOneOut",
    "LinearSurrogate",
    "MaskSamples",
    "MovingAverageBaseline",
    "PairedEstimator",
    "PlainReinforce",
]
