"""How the keep-probabilities follow from what is learned, one policy a file."""

from pgprune_lightning.policy.policies.explored_logits import ExploredLogits
from pgprune_lightning.policy.policies.free_logits import FreeLogits
from pgprune_lightning.policy.policies.free_probabilities import FreeProbabilities
from pgprune_lightning.policy.policies.mask_policy import MaskPolicy
from pgprune_lightning.policy.policies.structured_logits import StructuredLogits

__all__ = ["ExploredLogits", "FreeLogits", "FreeProbabilities", "MaskPolicy", "StructuredLogits"]
