"""What is learned, and how the keep-probabilities follow from it."""

from pgprune_lightning.policy.policies.logits import FreeLogits, StructuredLogits
from pgprune_lightning.policy.policies.mask_policy import FreeProbabilities, MaskPolicy
from pgprune_lightning.policy.policies.pgpe import PGPE, PGPEPolicy

__all__ = [
    "PGPE",
    "FreeLogits",
    "FreeProbabilities",
    "MaskPolicy",
    "PGPEPolicy",
    "StructuredLogits",
]
