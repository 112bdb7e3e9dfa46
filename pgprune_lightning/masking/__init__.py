"""The frozen model under a mask: finding it, loading it, masking it, reading its loss."""

from pgprune_lightning.masking.decoder_family import FAMILIES, DecoderFamily, decoder_layers
from pgprune_lightning.masking.gathered import GatheredExecution
from pgprune_lightning.masking.model_units import unit_layout_of
from pgprune_lightning.masking.multiplied import MultipliedExecution
from pgprune_lightning.masking.token_loss import token_nll
from pgprune_lightning.masking.widened import WidenedExecution

__all__ = [
    "FAMILIES",
    "DecoderFamily",
    "GatheredExecution",
    "MultipliedExecution",
    "WidenedExecution",
    "decoder_layers",
    "token_nll",
    "unit_layout_of",
]
