"""Gradients of the keep probabilities from losses and masks, one estimator a file."""

from pgprune_lightning.policy.estimators.estimator import GradientEstimator
from pgprune_lightning.policy.estimators.leave_one_out import LeaveOneOut
from pgprune_lightning.policy.estimators.moving_average import MovingAverageBaseline
from pgprune_lightning.policy.estimators.plain import PlainReinforce

__all__ = ["GradientEstimator", "LeaveOneOut", "MovingAverageBaseline", "PlainReinforce"]
