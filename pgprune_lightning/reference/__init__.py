"""Learning masks by back-propagation, to compare with; nothing else uses it."""

from pgprune_lightning.reference.backpropagated_pruning import BackpropagatedPruning
from pgprune_lightning.reference.gate_draw import GateDraw
from pgprune_lightning.reference.gumbel_softmax import GumbelSoftmax
from pgprune_lightning.reference.straight_through import StraightThrough

__all__ = ["BackpropagatedPruning", "GateDraw", "GumbelSoftmax", "StraightThrough"]
