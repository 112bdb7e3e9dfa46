"""Initial probabilities: a metric of importance, and its way into the feasible set."""

from pgprune_lightning.initialization.initial_policy import Initialization, initial_probabilities
from pgprune_lightning.initialization.probability import (
    normalize_metric,
    score_const,
    sigmoid_norm,
)

__all__ = [
    "Initialization",
    "initial_probabilities",
    "normalize_metric",
    "score_const",
    "sigmoid_norm",
]
