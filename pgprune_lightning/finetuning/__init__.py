"""Tuning a cut model a little, so that it recovers from the cut."""

from pgprune_lightning.finetuning.alpaca import ALPACA, AlpacaRecord, read_alpaca
from pgprune_lightning.finetuning.lora import finetune_lora
from pgprune_lightning.finetuning.options import LoraOptions, check_finetuning

__all__ = [
    "ALPACA",
    "AlpacaRecord",
    "LoraOptions",
    "check_finetuning",
    "finetune_lora",
    "read_alpaca",
]
