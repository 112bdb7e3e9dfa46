"""Structural pruning of large language models by policy gradient, with forward passes only."""

__version__ = "0.1.0"
