"""Cutting the smaller model that a mask describes."""

from pgprune_lightning.slicing.cut import cut_model

__all__ = ["cut_model"]
