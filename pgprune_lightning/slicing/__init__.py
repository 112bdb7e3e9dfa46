"""Cutting the smaller model that a mask describes, or slicing one without a mask."""

from pgprune_lightning.slicing.cut import cut_model
from pgprune_lightning.slicing.slicegpt import SlicedModel, slice_model

__all__ = ["SlicedModel", "cut_model", "slice_model"]
