"""Format `uniform`: the plan's projection onto layers of equal widths, for stock classes.

Shapes: U units.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig

from pgprune_lightning.errors import UserError
from pgprune_lightning.export.export_format import ExportFormat, ExportOptions, Logits, PrunedModel
from pgprune_lightning.export.hf import reloaded_logits, save_cut
from pgprune_lightning.export.stock import stock_config
from pgprune_lightning.export.widths import LayerWidths
from pgprune_lightning.plan import PruningPlan
from pgprune_lightning.policy import MaskSpace


class Uniform(ExportFormat):
    """Every layer keeps equally many units of a kind, those with the highest probabilities."""

    name = "uniform"
    purpose = "cut to equal widths, another mask than the plan's: stock class"

    def choose_mask(
        self,
        plan: PruningPlan,
        mask_U: Tensor,
        multiples: Mapping[UnitKind, int],
    ) -> Tensor:
        """Project a mask onto equal widths that keep no more than it does."""
        return uniform_mask(plan, mask_U, multiples)

    def check(
        self, config: PreTrainedConfig, widths: tuple[LayerWidths, ...], options: ExportOptions
    ) -> None:
        """Refuse what has no stock class."""
        obstacle = stock_config(config, widths)
        if isinstance(obstacle, str):
            raise UserError(f"export: uniform: {obstacle}. Give --format hf or padded.")
