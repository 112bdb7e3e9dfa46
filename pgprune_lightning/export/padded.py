"""Format `padded`: every tensor keeps its shape, and what a mask drops is zero.

Shapes: U units, K dropped units, W their rows of a projection.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from pgprune_lightning.export.export_format import ExportFormat, ExportOptions, Logits, PrunedModel
from pgprune_lightning.export.hf import reloaded_logits
from pgprune_lightning.export.widths import LayerWidths
from pgprune_lightning.masking.decoder_family import decoder_layers
from pgprune_lightning.masking.sub_layer import SubLayer, rows_of_units
from pgprune_lightning.policy import UnitLayout


class Padded(ExportFormat):
    """The stock class and the dense shapes: exact everywhere, and no smaller."""

    name = "padded"
    purpose = "dense shapes with zeros: stock class, exact, no smaller"

    def check(
        self, config: PreTrainedConfig, widths: tuple[LayerWidths, ...], options: ExportOptions
    ) -> None:
        """Zeros can stand for every mask."""

    def write(self, pruned: PrunedModel, folder: Path, options: ExportOptions) -> None:
        """Write the dense model with zeros in it."""
        padded = padded_model(pruned.dense, pruned.plan.space, pruned.mask_U)
        padded.save_pretrained(folder)
        pruned.planned.tokenizer.save_pretrained(folder)

    def reload(self, folder: Path, pruned: PrunedModel, device: torch.device) -> Logits:
        """What `from_pretrained` makes of the folder."""
        return reloaded_logits(folder, pruned, device)

    def parameters(self, pruned: PrunedModel) -> int:
        """Zeros are parameters."""
        return int(pruned.dense.num_parameters())


@torch.no_grad()
def padded_model(model: PreTrainedModel, space: UnitLayout, mask_U: Tensor) -> PreTrainedModel:
    """Copy a model with zeros for what a mask drops.

    Args:
        model: The dense model; it is not changed.
        space: Its units.
        mask_U: Which units stay, (U,), bool.

    Returns:
        A model of the same class and shapes, whose logits are those of the masked model.
    """
    padded = copy.deepcopy(model)
    mask_on_host_U = mask_U.cpu()
    layers = decoder_layers(padded)
    for group in space.groups:
        kept = mask_on_host_U[group.start : group.end]
        for part in layers[group.layer].sub_layers_of(group.kind):
            _zero(part, kept)
    return padded


def _zero(part: SubLayer, kept: Tensor) -> None:
    dropped_K, num_units = (~kept).nonzero().flatten(), len(kept)
    for projection in part.inputs:
        rows_W, linear = projection.rows_of(dropped_K, num_units), projection.linear
        linear.weight[rows_W] = 0
        if linear.bias is not None:
            linear.bias[rows_W] = 0
    output = part.output
    output.weight[:, rows_of_units(dropped_K, output.in_features // num_units)] = 0
    if not bool(kept.any()) and output.bias is not None:
        output.bias.zero_()  # an empty sub-layer adds nothing, its bias neither
