"""Learning masks by back-propagation, to compare with; nothing else uses it."""

from research.backpropagation.backpropagated_pruning import BackpropagatedPruning
from research.backpropagation.gate_draw import GateDraw
from research.backpropagation.gumbel_softmax import GumbelSoftmax
from research.backpropagation.straight_through import StraightThrough

__all__ = ["BackpropagatedPruning", "GateDraw", "GumbelSoftmax", "StraightThrough"]
