"""Structural pruning of large language models by policy gradient, with forward passes only."""

from pgprune_lightning.auto_classes import register_pruned_models

__version__ = "0.1.0"

register_pruned_models()
