"""The frozen model under a mask: finding it, loading it, masking it, reading its loss."""

from pgprune_lightning.masking.batched import BatchedExecution
from pgprune_lightning.masking.compact import CompactExecution
from pgprune_lightning.masking.decoder_family import FAMILIES, DecoderFamily, decoder_layers
from pgprune_lightning.masking.dense_masked import DenseMaskedExecution
from pgprune_lightning.masking.model_units import unit_layout_of
from pgprune_lightning.masking.token_loss import token_nll

__all__ = [
    "FAMILIES",
    "BatchedExecution",
    "CompactExecution",
    "DecoderFamily",
    "DenseMaskedExecution",
    "decoder_layers",
    "token_nll",
    "unit_layout_of",
]
