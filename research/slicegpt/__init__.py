"""SliceGPT: rotates the residual stream to its principal components and slices the least of them.

Source: Ashkboos et al. 2024, arXiv 2401.15024.
"""

from research.slicegpt.slicegpt import SlicedModel, slice_model

__all__ = ["SlicedModel", "slice_model"]
