"""Format `plan`: the mask alone, for whoever has the dense model.

Shapes: U units, B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from pgprune_lightning.export.export_format import ExportFormat, ExportOptions, Logits, PrunedModel
from pgprune_lightning.export.widths import LayerWidths
from pgprune_lightning.masking.dense_masked import DenseMaskedExecution
from pgprune_lightning.plan import PruningPlan


class PlanOnly(ExportFormat):
    """A plan's folder, whose mask may be another of its probabilities than the run's."""

    name = "plan"
    purpose = "the mask alone, as a plan's folder"

    def check(
        self, config: PreTrainedConfig, widths: tuple[LayerWidths, ...], options: ExportOptions
    ) -> None:
        """Every mask is a plan."""

    def write(self, pruned: PrunedModel, folder: Path, options: ExportOptions) -> None:
        """Write the plan; a validation of another mask does not go with it."""
        plan = pruned.plan
        if not torch.equal(pruned.mask_U.cpu(), plan.mask_U.cpu()):
            budget = plan.budget | {"keep_ratio": pruned.keep_ratio}
            plan = replace(plan, mask_U=pruned.mask_U, budget=budget, validation={})
        plan.save(folder)

    def reload(self, folder: Path, pruned: PrunedModel, device: torch.device) -> Logits:
        """The dense model under the mask that was written."""
        plan = PruningPlan.load(folder)
        execution = DenseMaskedExecution(pruned.dense, plan.space)

        def logits(tokens_BT: Tensor) -> Tensor:
            with execution.masked(plan.mask_U.to(device)) as masked:
                return masked(tokens_BT, use_cache=False).logits

        return logits

    def dense_bytes(self, pruned: PrunedModel, options: ExportOptions) -> int:
        """A plan has no weights."""
        return 0
