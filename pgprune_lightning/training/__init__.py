"""Learning the policy: the LightningModule and what it needs from a run folder."""

from pgprune_lightning.training.pruning_module import PolicyGradientPruning

__all__ = ["PolicyGradientPruning"]
