"""Recovery: fine-tuning a cut model with low-rank adapters."""

from pgprune_lightning.recovery.adapter_training import finetune_lora
from pgprune_lightning.recovery.alpaca import ALPACA, AlpacaRecord, read_alpaca
from pgprune_lightning.recovery.lora import LoraOptions, check_finetuning

__all__ = [
    "ALPACA",
    "AlpacaRecord",
    "LoraOptions",
    "check_finetuning",
    "finetune_lora",
    "read_alpaca",
]
